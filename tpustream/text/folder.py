"""FolderSettings: what Hugging Face keeps beside a vocabulary file, and the writing of the same files.

tokenizer_config.json wins over special_tokens_map.json, chat_template.jinja over the template in
tokenizer_config.json, generation_config.json over config.json, as in transformers.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tpustream.core.errors import ModelError
from tpustream.text.vocabulary import TokenizerSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class AddedToken:
    """A token that was added to a finished vocabulary; a special one steers the model and is not shown."""

    content: str
    special: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class FolderSettings:
    """Settings as the files give them, before texts are looked up in the vocabulary.

    Attributes:
      folder: for messages.
      add_bos: add_bos_token, None where no file says.
      special_tokens: role -> text.
      eos_ids: from generation_config.json or config.json.
      chat_template: Jinja source, or None.
      added_tokens: id -> token, the added_tokens_decoder of tokenizer_config.json.
    """

    folder: Path
    add_bos: bool | None
    special_tokens: Mapping[str, str]
    eos_ids: frozenset[int]
    chat_template: str | None
    added_tokens: Mapping[int, AddedToken]

    def resolve(
        self, token_to_id: Callable[[str], int | None], *, add_bos_default: bool
    ) -> TokenizerSettings:
        """Look the special tokens up. `add_bos_default` holds where no file says whether to add BOS."""
        bos = self._lookup("bos_token", token_to_id)
        eos = self._lookup("eos_token", token_to_id)
        add_bos = self.add_bos if self.add_bos is not None else add_bos_default
        return TokenizerSettings(
            bos_id=bos,
            eos_ids=self.eos_ids | ({eos} if eos is not None else set()),
            add_bos=add_bos,
            chat_template=self.chat_template,
            special_tokens=self.special_tokens,
        )

    def _lookup(self, role: str, token_to_id: Callable[[str], int | None]) -> int | None:
        text = self.special_tokens.get(role)
        if text is None:
            return None
        token = token_to_id(text)
        if token is None:
            raise ModelError(f"{self.folder}: {role}: wanted a token of the vocabulary, got {text!r}")
        return token


def read_folder(folder: Path) -> FolderSettings:
    """Read the files that are there; none is required. Raises ModelError for one that is broken."""
    config = read_json(folder / "tokenizer_config.json")
    special_map = read_json(folder / "special_tokens_map.json")
    roles = {role: value for role, value in {**special_map, **config}.items() if role.endswith("_token")}
    texts = {role: _text(value) for role, value in roles.items()}
    eos = [read_json(folder / name).get("eos_token_id") for name in ("generation_config.json", "config.json")]
    chosen = next((value for value in eos if value is not None), ())
    return FolderSettings(
        folder=folder,
        add_bos=config.get("add_bos_token"),
        special_tokens={role: text for role, text in texts.items() if text is not None},
        eos_ids=frozenset((chosen,) if isinstance(chosen, int) else chosen),
        chat_template=_chat_template(folder, config),
        added_tokens={
            int(token): AddedToken(content=entry["content"], special=bool(entry.get("special")))
            for token, entry in config.get("added_tokens_decoder", {}).items()
        },
    )


def write_folder(
    folder: Path,
    settings: TokenizerSettings,
    *,
    added_tokens: Mapping[int, AddedToken] | None = None,
    tokenizer_class: str | None = None,
) -> None:
    """Write what `read_folder` reads back as the same settings; generation_config.json keeps the rest.

    `tokenizer_class` is the class of transformers that reads the folder; None lets it go by the model.
    """
    config: dict[str, Any] = {**settings.special_tokens, "add_bos_token": settings.add_bos}
    if added_tokens:
        entries = {str(token): dataclasses.asdict(entry) for token, entry in added_tokens.items()}
        config["added_tokens_decoder"] = entries
    if tokenizer_class is not None:
        config["tokenizer_class"] = tokenizer_class
    _write_json(folder / "tokenizer_config.json", config)
    generation = read_json(folder / "generation_config.json")
    _write_json(folder / "generation_config.json", {**generation, "eos_token_id": sorted(settings.eos_ids)})
    if settings.chat_template is not None:
        (folder / "chat_template.jinja").write_text(settings.chat_template, encoding="utf-8", newline="")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; {} where there is no such file. Raises ModelError for anything else."""
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path}: wanted JSON, got: {error}") from error
    if not isinstance(data, dict):
        raise ModelError(f"{path}: wanted a JSON object, got {type(data).__name__}")
    return data


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _text(value: Any) -> str | None:
    """Text of a special token, a string or an object with its content; None for flags like add_bos_token."""
    content = value.get("content") if isinstance(value, Mapping) else value
    return content if isinstance(content, str) else None


def _chat_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    if (folder / "chat_template.jinja").is_file():
        # newline="" keeps the template byte for byte; Path.read_text has it only from Python 3.13 on.
        with open(folder / "chat_template.jinja", encoding="utf-8", newline="") as file:
            return file.read()
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {entry["name"]: entry["template"] for entry in template}
        if "default" not in named:
            raise ModelError(f"{folder}: chat_template: wanted one named 'default', got {sorted(named)}")
        return named["default"]
    return template
