"""What a model costs on a TPU that is not there, as the TPU compiler says: `python -m tpustream.plan`.

compiler (libtpu) -> hlo (reads its text) -> estimate (time) and hbm (memory) -> report, picture. Nothing
here runs a model or loads a weight.
"""
