"""encode_text on the prefix tree against open_clip's own: rows and seconds, random ViT-B/32 weights.

Two lists: 1000 names × 80 templates, as a zero-shot classifier's ensemble, and 20 000 names of one to four
words in one template, as a dictionary of concepts. Rows are counted on the whole list. Seconds are of a
share of the names, both ways in turns on the same prompts in one run; features are compared first.

    python bench/studies/text_tree.py --share 0.1
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import open_clip
import torch

import semobridge_ext as sb
from semobridge_ext.clip.prefix_tree import groups, sort_prompts

_SETS = Path(sb.__file__).parent / "data" / "picto_sets.json"
_MORE = """
otter badger heron pelican lynx walrus mole weasel newt gecko iguana python cobra tortoise salmon trout
mackerel sardine tuna herring lobster shrimp oyster mussel squid cuttlefish seahorse starfish jellyfish
coral sparrow robin finch swallow magpie raven crow jackdaw cuckoo woodpecker kingfisher stork flamingo
ostrich emu peacock pheasant partridge quail turkey goose swan mallard pigeon dove parrot macaw canary ant
wasp hornet beetle ladybird cricket grasshopper mantis dragonfly moth mosquito cockroach termite centipede
scorpion tarantula snail slug earthworm leech donkey mule pony zebra giraffe antelope gazelle reindeer moose
bison buffalo yak camel llama alpaca goat sheep ram boar warthog hippopotamus rhinoceros elephant mammoth
lion leopard jaguar cheetah puma hyena jackal wolf coyote dingo raccoon skunk opossum kangaroo koala wombat
platypus hedgehog porcupine squirrel chipmunk beaver hamster gerbil lemming shrew bat lemur baboon gibbon
orangutan oak elm birch maple willow poplar cedar cypress juniper larch baobab bamboo fern moss lichen
clover thistle nettle daisy tulip daffodil crocus orchid lily lotus violet poppy sunflower lavender jasmine
hibiscus apricot peach plum nectarine fig pomegranate papaya mango guava lychee coconut walnut almond
hazelnut pecan cashew pistachio chestnut barley oat rye millet sorghum lentil chickpea soybean turnip radish
beetroot parsnip celery fennel leek shallot garlic ginger turmeric cinnamon nutmeg saffron basil oregano
thyme rosemary pancake waffle croissant bagel pretzel scone muffin cupcake brownie doughnut custard pudding
sorbet lasagna ravioli risotto paella goulash curry dumpling noodle omelette quiche burrito taco nacho kebab
falafel anvil chisel gimlet hacksaw mallet pliers sickle scythe spade trowel wheelbarrow rake hoe plough
harrow loom spindle bobbin thimble corset kimono poncho sari kilt tunic turban beret fedora bonnet sombrero
moccasin clog trumpet bugle banjo bassoon cello clarinet cymbal dulcimer flute glockenspiel harmonica harp
lute lyre mandolin oboe piccolo saxophone sitar tambourine trombone tuba ukulele viola xylophone zither
abacus compass sextant telescope sundial hourglass lantern chandelier candelabra beacon lighthouse windmill
watermill aqueduct viaduct drawbridge pagoda minaret obelisk pyramid igloo yurt wigwam gazebo pergola
trellis sloop ketch dinghy trawler yacht steamboat canoe kayak catamaran galleon schooner ferry tugboat
barge gondola submarine hovercraft glider helicopter airship locomotive tram trolleybus monorail rickshaw
stagecoach sleigh toboggan unicycle tandem moped
"""
_OF = """
photo; bad photo; good photo; close-up; blurry photo; dark photo; bright photo; cropped photo; low-quality
photo; black and white photo; snapshot; polaroid; postcard; screenshot; thumbnail; scan; drawing; pencil
drawing; sketch; doodle; painting; watercolour; oil painting; mural; mosaic; engraving; woodcut; poster;
sticker; stamp; cartoon; comic; icon; logo; diagram; rendering; sculpture; carving; embroidery; tattoo; toy;
model
"""
_ARTICLES = ("a {} of a <>.", "a {} of the <>.")  # with every kind above: 84, of which the last are dropped
_OTHERS = ("a photo of many <>.", "a photo of one <>.", "a photo of my <>.", "<> in a computer game.")


def names_of_sets() -> list[str]:
    """1000 names: those of the embedded sets, and more."""
    sets = json.loads(_SETS.read_text())
    found = dict.fromkeys(name for data in sets.values() for name in data["class_names"])
    return [*found, *(word for word in dict.fromkeys(_MORE.split()) if word not in found)][:1000]


def templates() -> list[str]:
    kinds = [" ".join(kind.split()) for kind in _OF.split(";")]
    pairs = [article.format(kind) for kind in kinds for article in _ARTICLES]
    return [*pairs[: 80 - len(_OTHERS)], *_OTHERS]


def short_names(count: int, tokenizer: Any) -> list[str]:
    """One to four words of the tokenizer's own, 2.8 on average, as a dictionary of concepts has them."""
    words = [
        w[:-4] for w in tokenizer.encoder if w.endswith("</w>") and w[:-4].isalpha() and 4 < len(w) - 4 < 11
    ]
    generator = torch.Generator().manual_seed(0)
    picks = torch.randint(len(words), (count, 4), generator=generator).tolist()
    lengths = [(1, 2, 2, 3, 3, 3, 3, 3, 4, 4)[i] for i in torch.randint(10, (count,), generator=generator)]
    return [" ".join(words[i] for i in pick[:n]) for pick, n in zip(picks, lengths, strict=True)]


def rows_of(batch_rows: int, prompts: list[str], tokenizer: Any) -> tuple[int, int]:
    """Rows of the tree in groups of `batch_rows`, and of every position."""
    ids = tokenizer(prompts)
    tree = sort_prompts(ids, ids.argmax(dim=1))
    cut = groups(tree, batch_rows, torch.device("cpu"))
    return sum(len(group.tokens) for group in cut), ids.numel()


@torch.no_grad()
def own(model: Any, tokenizer: Any, prompts: list[str], batch: int) -> torch.Tensor:
    parts = [model.encode_text(tokenizer(prompts[i : i + batch])) for i in range(0, len(prompts), batch)]
    return torch.cat(parts)


def timed(function: Any) -> tuple[float, torch.Tensor]:
    start = time.perf_counter()
    found = function()
    return time.perf_counter() - start, found


def measure(model: Any, tokenizer: Any, name: str, prompts: list[str], part: list[str], args: Any) -> None:
    tree, full = rows_of(args.batch_rows, prompts, tokenizer)
    print(f"{name}: {len(prompts)} prompts, {full} rows at 77 a prompt, {tree} on the tree: "
          f"{tree / len(prompts):.2f} a prompt, {full / tree:.1f} times fewer", flush=True)  # fmt: skip
    # Own passes in pieces, a tree's before and after each: a slow moment of the machine meets both.
    pieces = [part[i :: args.pieces] for i in range(args.pieces)]
    ours = [timed(lambda: sb.encode_text(model, part, tokenizer=tokenizer, batch_rows=args.batch_rows))]
    theirs, worst = [], 0.0
    rows = dict(zip(part, ours[0][1], strict=True))
    for piece in pieces:
        theirs.append(timed(lambda piece=piece: own(model, tokenizer, piece, args.batch)))
        mine = torch.stack([rows[text] for text in piece])
        worst = max(worst, float(((mine - theirs[-1][1]).norm(dim=1) / theirs[-1][1].norm(dim=1)).max()))
        ours.append(
            timed(lambda: sb.encode_text(model, part, tokenizer=tokenizer, batch_rows=args.batch_rows))
        )
    assert worst < 1e-4, f"features apart by {worst:.1e}"
    mine, others = statistics.median(t for t, _ in ours), sum(t for t, _ in theirs)
    print(f"    {len(part)} prompts: open_clip {others:.2f} s ({1e3 * others / len(part):.2f} ms a prompt), "
          f"tree {mine:.2f} s (median of {len(ours)}: {min(t for t, _ in ours):.2f} to "
          f"{max(t for t, _ in ours):.2f}), {others / mine:.1f} times; features within {worst:.1e}",
          flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--share", type=float, default=0.1, help="of the names that are timed")
    parser.add_argument("--batch", type=int, default=256, help="prompts at once in open_clip's own pass")
    parser.add_argument("--batch-rows", type=int, default=4096, help="of encode_text")
    parser.add_argument("--pieces", type=int, default=4, help="turns")
    args = parser.parse_args()
    torch.manual_seed(0)
    model = open_clip.create_model("ViT-B-32", pretrained=None).eval()
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    print(f"threads {torch.get_num_threads()}, torch {torch.__version__}, {sb.build_info()['isa']}")
    for name, names, forms in (
        ("1000 names x 80 templates", names_of_sets(), templates()),
        ("20 000 short names x 1", short_names(20_000, tokenizer), ["a photo of a <>."]),
    ):
        lists = [[t.replace("<>", n) for n in part for t in forms] for part in
                 (names, names[:: max(1, round(1 / args.share))])]  # fmt: skip
        measure(model, tokenizer, name, *lists, args)


if __name__ == "__main__":
    main()
