"""What a benchmark says something about: the abilities of arXiv 2506.01872, and the senses."""

from fnmatch import fnmatchcase

ABILITIES = (
    "knowledge", "reasoning", "instruction following", "long context", "multilingual", "safety",
    "image", "video", "audio",
)  # fmt: skip
#: patterns of benchmark names, lower case, without separators; the first that matches
_KNOWN = (
    ("multilingual", "mmmlu* mgsm* xnli* xcopa* xstorycloze* xwinograd* belebele* flores*"
                     " globalmmlu* mlqa* tydiqa* wmt* lambadaopenaimt*"),
    ("image", "mmmu* mmbench* mmstar* mmvet* vqav2* vizwiz* textvqa* docvqa* chartqa* infovqa*"
              " gqa* pope* scienceqa* seedbench* ai2d* ocrbench* mathvista* mathvision* mme"
              " realworldqa* llavabench*"),
    ("video", "videomme* mvbench* msvd* msrvtt* activitynet* egoschema* nextqa* longvideobench*"
              " mlvu* perceptiontest* tempcompass* videochatgpt*"),
    ("audio", "librispeech* airbench* clothoaqa* vocalsound* mmau* voicebench* commonvoice*"
              " fleurs* covost* meld* audiocaps*"),
    ("instruction following", "ifeval* followbench* infobench* mtbench* alpacaeval*"),
    ("long context", "pr passkey* passageretrieval* zeroscrolls* longbench* ruler* needle* niah*"
                     " scrolls* babilong* infinitebench*"),
    ("safety", "harmbench* toxigen* truthfulqa* advbench* xstest* bbq* realtoxicity* winogender*"
               " crowspairs*"),
    ("reasoning", "gpqa* math* minervamath* hendrycksmath* gsm8k* gsmplus* humaneval* mbpp* bbh*"
                  " bigbench* arcchallenge* aime* hellaswag* winogrande* piqa* livecodebench* drop"
                  " musr* logiqa* asdiv* svamp*"),
    ("knowledge", "mmlu* arceasy* openbookqa* triviaqa* naturalquestions* nqopen* ceval* cmmlu*"
                  " agieval* boolq* sciq* socialiqa* leaderboardmmlu* pubmedqa* medqa*"),
)  # fmt: skip


def ability_of(benchmark: str) -> str | None:
    """Return the ability that a well-known benchmark is about, by its name."""
    name = "".join(c for c in benchmark.casefold() if c.isalnum())
    for ability, patterns in _KNOWN:
        if any(fnmatchcase(name, pattern) for pattern in patterns.split()):
            return ability
    return None
