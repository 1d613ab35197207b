"""The wordings that demo_text.py draws from: question templates, subjects, tools."""

from __future__ import annotations

# {x} is a subject of demo_facts.py.
WHAT = (
    "what is {x}", "what's {x}", "what exactly is {x}", "explain {x}", "tell me about {x}",
    "describe {x}", "define {x}", "can you explain {x}", "could you tell me what {x} is",
    "what does {x} mean", "what do you mean by {x}", "help me understand {x}", "{x}",
    "i want to know about {x}", "give me a short description of {x}", "do you know what {x} is",
    "in one sentence, what is {x}", "i do not understand {x}", "what is meant by {x}",
    "how would you explain {x}", "what is {x} in dlcore", "how does {x} work",
    "what is the meaning of {x}", "i'd like to learn about {x}", "teach me about {x}",
)  # fmt: skip
DOES = (
    "what does {x} do", "what is {x} for", "what's {x} for", "what is the purpose of {x}",
    "how does {x} work", "why would i use {x}", "when should i use {x}", "explain {x}",
    "tell me about {x}", "{x}", "what is {x}", "what's {x}", "describe {x}", "what can {x} do",
    "can you explain {x}", "what is {x} good for", "what happens if i use {x}", "how do i use {x}",
    "could you tell me what {x} does", "i want to know about {x}", "what is the use of {x}",
    "what does {x} mean", "help me understand {x}", "do you know what {x} does",
    "what does {x} control", "what is the effect of {x}",
)  # fmt: skip
DEFAULT = (
    "what is the default of {x}", "what's the default of {x}", "default value of {x}",
    "what is the default value of {x}", "what's the default for {x}", "what is {x} by default",
    "which value does {x} have by default", "what happens if i do not set {x}",
    "if i don't set {x}, what is used", "what is {x} set to by default", "{x} default",
    "does {x} have a default", "tell me the default of {x}", "which default does {x} have",
    "what is the standard value of {x}",
)  # fmt: skip
TASK = (
    "how do i {x}", "how can i {x}", "how to {x}", "what is the way to {x}", "i want to {x}",
    "what do i type to {x}", "which command do i need to {x}", "is there a way to {x}",
    "show me how to {x}", "can i {x}", "how would i {x}", "tell me how to {x}", "i need to {x}",
    "what should i do to {x}", "how does one {x}", "please help me {x}", "i would like to {x}",
)  # fmt: skip
PLAIN = ("{x}",)
# {a}, {b}: numbers; {o}: the sign; {w}: the sign as a word.
WORDS = {"+": "plus", "-": "minus", "*": "times"}
SUM_FORMS = (
    "{a} {o} {b}", "{a}{o}{b}", "what is {a} {o} {b}", "what's {a} {o} {b}", "{a} {w} {b}",
    "what is {a} {w} {b}", "how much is {a} {o} {b}", "how much is {a} {w} {b}",
    "calculate {a} {o} {b}", "compute {a} {o} {b}", "{a} {o} {b} =", "{a}{o}{b}=",
    "solve {a} {o} {b}",
    "can you calculate {a} {o} {b}", "tell me {a} {w} {b}", "and {a} {o} {b}", "now {a} {o} {b}",
    "what does {a} {o} {b} equal", "please compute {a} {w} {b}", "what is {a}{o}{b}",
    "give me the result of {a} {o} {b}",
)  # fmt: skip
OWN_FORMS = {
    "+": (
        "add {a} and {b}",
        "what is the sum of {a} and {b}",
        "sum of {a} and {b}",
        "add {b} to {a}",
    ),
    "-": ("subtract {b} from {a}", "take {b} away from {a}", "the difference between {a} and {b}"),
    "*": ("multiply {a} by {b}", "what is the product of {a} and {b}", "multiply {a} and {b}"),
}
SPELLED = {"*": ("*", "x", "\u00d7")}


# What the model does not know.
FOREIGN = (
    "france", "paris", "the moon", "a cat", "dogs", "football", "the world cup", "shakespeare",
    "photosynthesis", "quantum mechanics", "pizza", "bread", "the weather", "jazz", "piano",
    "chess", "the president", "berlin", "tokyo", "the ocean", "gold", "kubernetes", "docker",
    "excel", "javascript", "rust", "linux", "windows", "an iphone", "bitcoin", "inflation",
    "a mortgage", "yoga", "headache", "vitamin c", "dinosaurs", "mars", "gravity", "electricity",
    "a car", "bicycles", "coffee", "tea", "wine", "napoleon", "world war two", "the roman empire",
    "love", "happiness", "the meaning of life", "god", "music", "movies", "star wars",
    "harry potter", "a poem", "cooking", "history", "geography", "biology", "chemistry",
    "physics", "spanish", "german", "french grammar", "a recipe", "sushi", "swimming",
    "the olympics", "taxes", "a passport", "new york", "london", "amazon", "google", "a lawyer",
    "cancer", "sleep", "dreams", "birds", "elephants", "trees", "flowers", "rain", "snow",
    "volcanoes", "an earthquake", "the sun", "black holes", "dna", "evolution", "einstein",
    "mozart", "picasso", "art", "fashion", "shoes", "my mother", "my boss",
    "your favourite colour", "your age", "a joke", "a story", "the news", "the time",
    "today's date",
)  # fmt: skip
UNKNOWN = (
    "what is the capital of {x}", "who invented {x}", "write a poem about {x}",
    "write me a story about {x}",
    "what is {x}", "tell me about {x}", "explain {x}", "who is {x}", "where is {x}",
    "how old is {x}",
    "what do you think about {x}", "how do i get to {x}", "how do i make {x}",
    "translate {x} into spanish",
    "what's the weather in {x}", "recommend a book about {x}", "when was {x} discovered",
    "do you like {x}",
    "give me {x}", "tell me {x}", "what does {x} mean", "how does {x} work",
    "can you help me with {x}",
    "who won {x}", "what is the best {x}", "is {x} good for me", "why is {x} so expensive",
    "sing {x}",
    "what is the price of {x}", "what is the history of {x}", "summarize {x}", "how far is {x}",
    "what is the population of {x}", "what is the default of {x}", "what does {x} do",
)  # fmt: skip
FLAG_WORDS = (  # noqa: SIM905
    "fast slow deep lazy auto force dry run color width height level depth retry delay user root "
    "path file cache debug trace quiet verbose magic turbo shard window stream pool thread worker"
).split()
# How people wrap a question.
OPENERS = ("please ", "hey, ", "hi, ", "hello, ", "so ", "ok, ", "and ", "now ", "um, ", "just ")
CLOSERS = (" please", ", please", " thanks", " for me", ", thank you")


SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are dlcore's demo assistant.",
    "Answer briefly.",
    "You are a helpful assistant. Answer in one sentence.",
    "You are an expert on inference engines.",
    "Be concise and honest.",
)


# name -> description, argument, usual values.
TOOLS = {
    "get_weather": ("Get the weather of a city", "city", ("Paris", "Berlin", "Tokyo", "London",
        "Rome")),
    "get_time": ("Get the time in a city", "city", ("Madrid", "Oslo", "Delhi", "Cairo", "Lima")),
    "search": ("Search the web", "query", ("cats", "music", "football news", "red shoes", "jazz")),
    "open_file": ("Open a file", "path", ("notes.txt", "data.csv", "main.py", "todo.md",
        "log.txt")),
    "send_message": ("Send a message to someone", "to", ("Anna", "Bob", "Carol", "Dan", "Eve")),
}  # fmt: skip
TOOL_ASKS = {
    "get_weather": ("what's the weather in {v}", "how is the weather in {v}", "weather in {v}"),
    "get_time": ("what time is it in {v}", "tell me the time in {v}", "time in {v}"),
    "search": ("search the web for {v}", "look up {v}", "find {v} on the web"),
    "open_file": ("open {v}", "show me the file {v}", "please open the file {v}"),
    "send_message": ("send a message to {v}", "write to {v}", "message {v}"),
}
TOOL_INTRO = "# Tools\n\nYou may call these functions:\n<tools>\n"
TOOL_OUTRO = (
    "\n</tools>\n\nTo call one, answer with its name and arguments as JSON:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <arguments-object>}\n</tool_call>'
)
