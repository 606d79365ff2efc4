"""The prompts of the causal goldens: scripts, alphabets and whitespace that break tokenizers."""

_LONG = (
    "The lighthouse keeper kept a notebook in which he wrote the state of the sea, the direction of the "
    "wind and the names of the ships that passed. On Monday the sea was calm and three ships passed. On "
    "Tuesday the wind came from the north and one ship passed, a grey freighter with a red funnel. On "
    "Wednesday there was fog, and he heard a horn but saw nothing. On Thursday the fog lifted, and a small "
    "sailing boat lay at anchor in the bay, with nobody on deck. He rowed out to it. In the cabin he found "
    "a lamp that was still warm, a chart of a coast he did not know, and a notebook like his own. The "
    "first page said: the sea was calm and three ships passed. The second page said: the wind came from "
    "the north. He turned the pages faster. Fog, a horn, a small boat in the bay. On the last page there "
    "was only a date, and the date was tomorrow's. He sat down at the table and thought about what he "
    "should do. He could row back and climb the stairs and light the lamp as he did every evening. He "
    "could raise the anchor and follow the chart. Or he could take the pen that lay beside the notebook "
    "and write the next line himself. Outside, the wind began to turn. The keeper looked at the chart "
    "again: the coast had a lighthouse on it, marked with a small red star, and beside the star somebody "
    "had written his name. He took the pen, dipped it in the ink and"
)

RAW: dict[str, str] = {
    "story": "Once upon a time",
    "python": 'def fibonacci(n):\n    """Return the n-th Fibonacci number."""\n    if n <',
    "c": "#include <stdio.h>\n\nint main(int argc, char **argv)\n{\n"
    "\tfor (int i = 0; i < argc; i++)\n\t\tprintf(",
    "french": "Il était une fois, dans une forêt très éloignée, un garçon qui",
    "german": "Die Straße führte über den Fluß, und am Ende der Brücke stand",
    "japanese": "昔々、あるところに、おじいさんと",
    "chinese": "人工智能是计算机科学的一个分支，它",
    "arabic": "كان يا ما كان في قديم الزمان",
    "emoji": "Best emoji for a party 🎉🥳👩‍👩‍👧 and for a rainy day ☔🌧️:",
    "numbers": "x =   12345.6789\n\n\n\ty  = -0.001e+10,  1,000,000   \n 7 * 8 =",
    "long": _LONG,
}

CHAT: dict[str, list[dict[str, str]]] = {
    "chat": [{"role": "user", "content": "What is the capital of France?"}],
    "chat_system": [
        {"role": "system", "content": "You are a pirate. Answer in one short sentence."},
        {"role": "user", "content": "Where did you hide the treasure?"},
    ],
}
