"""Fusion by interleaving: every mode by its formula, starting from the 2D tokens as they are."""

import pytest
import torch

from allocentric.fusion.interleave import MODES, InterleaveConnector, block_length, layout

GRIDS = [(4, 6), (2, 4), (4, 4)]  # patches of frames of unequal size
TOKENS = [h * w // 4 for h, w in GRIDS]


def connector(mode: str, camera: bool = False, started: bool = True) -> InterleaveConnector:
    torch.manual_seed(0)
    made = InterleaveConnector(channels=8, merge=2, hidden_size=12, out_size=10, mode=mode, camera=camera)
    if started:
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.normal_()
    return made


def scene() -> tuple[list, list, list]:
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    visual = [draw(n, 10) for n in TOKENS]
    return visual, [draw(4 * n, 8) for n in TOKENS], [draw(8) for _ in TOKENS]


def test_layouts():
    names = {"visual": "V", "geometry": "S", "fused": "F", "pairs": "P", "camera": "u"}
    written = {mode: " ".join(names[kind] + str(frame) for kind, frame in layout(2, mode)) for mode in MODES}
    assert written == {
        "A": "V0 S0 V1 S1", "B": "F0 F1", "C": "V0 S0 V1 S1", "D": "P0 P1", "E": "u0 F0 u1 F1", "F": "V0 V1 S0 S1",
    }  # fmt: skip
    with pytest.raises(ValueError, match="fusion mode: found 'G', expected one of"):
        layout(2, "G")


@pytest.mark.parametrize("mode", MODES)
def test_modes_by_their_formulas(mode):
    fusion = connector(mode)
    visual, patches, cameras = scene()
    expected = []
    anchored = []
    for v, g, u, (h, w) in zip(visual, patches, cameras, GRIDS, strict=True):
        normed = fusion.norm(g).view(h, w, 8)
        squares = [normed[y : y + 2, x : x + 2].reshape(-1) for y in range(0, h, 2) for x in range(0, w, 2)]
        a = fusion.gate * fusion.mlp(torch.stack(squares))
        s = v + a + fusion.offset
        if mode == "A":
            expected += [v, s]
        elif mode == "B":
            expected += [v + a]
        elif mode == "C":
            expected += [v, a + fusion.offset]
        elif mode == "D":
            expected += [torch.cat([torch.stack([v[i], s[i]]) for i in range(len(v))])]
        elif mode == "E":
            expected += [fusion.camera(u)[None] + fusion.offset, v + a]
        else:
            expected += [v]
            anchored += [s]
    expected += anchored
    found = fusion(visual, patches, cameras, GRIDS)
    assert len(found) == len(expected)
    for block, one, other in zip(layout(3, mode), found, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-5)
        assert len(one) == block_length(block.kind, TOKENS[block.frame], False)


@pytest.mark.parametrize("mode", ["A", "C", "F"])
def test_the_camera_token_leads_the_geometry(mode):
    fusion, (visual, patches, cameras) = connector(mode, camera=True), scene()
    without = connector(mode)
    without.load_state_dict(fusion.state_dict(), strict=False)
    for block, one, other in zip(
        layout(3, mode), fusion(visual, patches, cameras, GRIDS), without(visual, patches, cameras, GRIDS), strict=True
    ):
        assert len(one) == block_length(block.kind, TOKENS[block.frame], True)
        if block.kind == "geometry":
            assert torch.allclose(one[0], fusion.camera(cameras[block.frame]) + fusion.offset)
            one = one[1:]
        assert torch.equal(one, other)
    for wrong in ("B", "D", "E"):
        with pytest.raises(ValueError, match=f"camera_token: found it with mode '{wrong}'"):
            connector(wrong, camera=True)


def test_at_first_geometry_tokens_are_the_2d_tokens():
    visual, patches, cameras = scene()
    for mode in MODES:
        blocks = connector(mode, started=False)(visual, patches, cameras, GRIDS)
        for (kind, frame), block in zip(layout(3, mode), blocks, strict=True):
            expected = {"pairs": visual[frame].repeat_interleave(2, 0), "camera": torch.zeros(1, 10)}.get(kind, visual[frame])
            expected = torch.zeros_like(expected) if mode == "C" and kind == "geometry" else expected
            assert torch.equal(block, expected), (mode, kind)


def test_a_grid_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="found 8 patches, expected 4 x 6 with sides in multiples of 2"):
        connector("A").project(torch.zeros(8, 8), (4, 6))
