"""Configs of the Spa3R parity cases, from their `case.json`."""

from allocentric.encoders.spa3r import Spa3RConfig
from allocentric.encoders.vggt import VGGTConfig


def vggt_config(hyper: dict) -> VGGTConfig:
    vggt = hyper["vggt"]
    same = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "num_register_tokens")
    return VGGTConfig(
        **{name: vggt[name] for name in same},
        mlp_ratio=float(vggt["mlp_ratio"]),
        rope_freq=float(vggt["rope_freq"]),
        patch_embed_depth=vggt["patch_embed"]["depth"],
        patch_embed_num_heads=vggt["patch_embed"]["num_heads"],
        camera_depth=vggt["camera_head"]["trunk_depth"],
        camera_num_heads=vggt["camera_head"]["num_heads"],
        camera_iterations=vggt["camera_head"]["num_iterations"],
        dpt_features=vggt["dpt"]["features"],
        dpt_out_channels=vggt["dpt"]["out_channels"],
        dpt_layers=vggt["dpt"]["intermediate_layer_idx"],
    )


def spa3r_config(hyper: dict) -> Spa3RConfig:
    """The released form: RMSNorm in the global blocks, cameras in VGGT's frame."""
    semantic = hyper.get("semantic", {"embed_dim": 40})
    return Spa3RConfig.compat(vggt_config(hyper), **hyper["spa3r"], semantic_dim=semantic["embed_dim"])
