"""The networks of the surgery exam: which there are, at what input size, and how they are built without weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from compress.torchvision_compat import torchvision  # before timm, which imports torchvision as well

SIZE = 64
"""Pixels a side, where nothing else is said: a stride of 32 leaves 2x2."""

TORCHVISION_SIZES = {
    "inception_v3": 96,
    "maxvit_t": 224,
    "swin_": 96,
    "vit_b_16": 96,
    "vit_b_32": 96,
    "vit_l_16": 96,
    "vit_l_32": 96,
    "vit_h_14": 98,
}
"""Start of a name -> pixels a side, where a network needs more than ``SIZE``: windows, patches, strides."""

TIMM_FAMILIES = {
    "beit": ("beit_base_patch16_224", 224),
    "botnet": ("botnet26t_256", 256),
    "cait": ("cait_xxs24_224", 224),
    "coat": ("coat_tiny", 224),
    "coatnet": ("coatnet_nano_rw_224", 224),
    "convit": ("convit_tiny", 224),
    "convmixer": ("convmixer_768_32", 70),
    "convnext": ("convnext_atto", 64),
    "convnextv2": ("convnextv2_atto", 64),
    "cspnet": ("cspresnet50", 64),
    "cs3darknet": ("cs3darknet_s", 64),
    "darknet": ("darknet21", 64),
    "deit": ("deit_tiny_distilled_patch16_224", 224),
    "densenet": ("densenet121", 64),
    "densenetblur": ("densenetblur121d", 64),
    "dla": ("dla34", 64),
    "dpn": ("dpn68", 64),
    "ecaresnet": ("ecaresnet26t", 64),
    "edgenext": ("edgenext_xx_small", 64),
    "efficientformer": ("efficientformer_l1", 224),
    "efficientformerv2": ("efficientformerv2_s0", 224),
    "efficientnet": ("efficientnet_b0", 64),
    "efficientnet_lite": ("efficientnet_lite0", 64),
    "efficientnetv2": ("efficientnetv2_rw_t", 64),
    "efficientvit": ("efficientvit_b0", 64),
    "fasternet": ("fasternet_t0", 64),
    "fastvit": ("fastvit_t8", 64),
    "fbnet": ("fbnetc_100", 64),
    "fbnetv3": ("fbnetv3_b", 64),
    "focalnet": ("focalnet_tiny_srf", 64),
    "gcresnet": ("gcresnext26ts", 64),
    "gernet": ("gernet_s", 64),
    "ghostnet": ("ghostnet_050", 64),
    "ghostnetv2": ("ghostnetv2_100", 64),
    "hardcorenas": ("hardcorenas_a", 64),
    "hgnetv2": ("hgnetv2_b0", 64),
    "hrnet": ("hrnet_w18_small", 64),
    "inception_next": ("inception_next_atto", 64),
    "inception_resnet": ("inception_resnet_v2", 96),
    "inception_v3": ("inception_v3", 96),
    "inception_v4": ("inception_v4", 96),
    "lcnet": ("lcnet_050", 64),
    "levit": ("levit_128s", 224),
    "mambaout": ("mambaout_femto", 64),
    "maxvit": ("maxvit_pico_rw_256", 256),
    "mixer": ("mixer_s32_224", 224),
    "mixnet": ("mixnet_s", 64),
    "mnasnet": ("mnasnet_small", 64),
    "mobilenetv1": ("mobilenetv1_100", 64),
    "mobilenetv2": ("mobilenetv2_050", 64),
    "mobilenetv3": ("mobilenetv3_small_100", 64),
    "mobilenetv4": ("mobilenetv4_conv_small", 64),
    "mobileone": ("mobileone_s0", 64),
    "mobilevit": ("mobilevit_xxs", 64),
    "mvitv2": ("mvitv2_tiny", 224),
    "nextvit": ("nextvit_small", 64),
    "nf_resnet": ("nf_resnet26", 64),
    "nfnet": ("nfnet_l0", 64),
    "pit": ("pit_ti_224", 224),
    "poolformer": ("poolformer_s12", 64),
    "pvt_v2": ("pvt_v2_b0", 64),
    "regnetx": ("regnetx_002", 64),
    "regnety": ("regnety_002", 64),
    "regnetz": ("regnetz_005", 64),
    "repghostnet": ("repghostnet_050", 64),
    "repvgg": ("repvgg_a0", 64),
    "repvit": ("repvit_m0_9", 64),
    "res2net": ("res2net50_26w_4s", 64),
    "resmlp": ("resmlp_12_224", 224),
    "resnest": ("resnest14d", 64),
    "resnet": ("resnet26", 64),
    "resnetblur": ("resnetblur18", 64),
    "resnetv2": ("resnetv2_18", 64),
    "resnetv2_bit": ("resnetv2_50x1_bit", 64),
    "resnext": ("resnext26ts", 64),
    "rexnet": ("rexnet_100", 64),
    "selecsls": ("selecsls42b", 64),
    "seresnet": ("seresnet18", 64),
    "shvit": ("shvit_s1", 64),
    "skresnet": ("skresnet18", 64),
    "starnet": ("starnet_s050", 64),
    "swiftformer": ("swiftformer_xs", 64),
    "swin": ("swin_tiny_patch4_window7_224", 224),
    "tf_efficientnet": ("tf_efficientnet_b0", 64),
    "tf_mixnet": ("tf_mixnet_s", 64),
    "tinynet": ("tinynet_e", 64),
    "tresnet": ("tresnet_m", 64),
    "twins": ("twins_svt_small", 224),
    "vgg": ("vgg11_bn", 64),
    "visformer": ("visformer_tiny", 224),
    "vit": ("vit_tiny_patch16_224", 224),
    "vovnet": ("ese_vovnet19b_dw", 64),
    "xception": ("xception41", 96),
    "xcit": ("xcit_nano_12_p16_224", 224),
}
"""Family -> (a small member, pixels a side): the native size where the network is built for one."""


@dataclass(frozen=True)
class Network:
    """One network of the exam.

    Attributes:
        suite: ``torchvision`` or ``timm``.
        name: the builder's name.
        family: what the table lists it under.
        size: pixels a side of the example input.
        build: makes it, with weights as the library initialises them.
    """

    suite: str
    name: str
    family: str
    size: int
    build: Callable[[], nn.Module]

    def parameters(self) -> int:
        """How many parameters it has; nothing is allocated, where its constructor can do without."""
        try:
            with torch.device("meta"):
                model = self.quietly_built()
        except Exception:  # a constructor that reads values of its tensors
            model = self.quietly_built()
        return sum(p.numel() for p in model.parameters())

    def quietly_built(self) -> nn.Module:
        """The network, without what its library warns about."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self.build().eval()


def torchvision_networks() -> list[Network]:
    """Every classification and segmentation model that torchvision can build."""
    models: Any = torchvision.models
    return [
        *(_torchvision(name) for name in models.list_models(module=models)),
        *(_torchvision(name) for name in models.list_models(module=models.segmentation)),
    ]


def timm_networks() -> list[Network]:
    """One small member of each family of timm."""
    import timm

    return [
        Network("timm", name, family, size, partial(timm.create_model, name, pretrained=False))
        for family, (name, size) in TIMM_FAMILIES.items()
    ]


SUITES: dict[str, Callable[[], list[Network]]] = {"torchvision": torchvision_networks, "timm": timm_networks}


def find(suite: str, name: str) -> Network:
    """The network of that name; of timm any model may be asked for.

    Raises:
        KeyError: the suite has none of that name.
    """
    for network in SUITES[suite]():
        if network.name == name:
            return network
    if suite == "timm":
        import timm

        if timm.is_model(name):
            config: Any = timm.get_pretrained_cfg(name)
            size = config.input_size[-1] if config is not None and config.fixed_input_size else SIZE
            return Network(suite, name, name, size, partial(timm.create_model, name, pretrained=False))
    raise KeyError(f"{suite} has no model {name}")


def _torchvision(name: str) -> Network:
    size = next((size for start, size in TORCHVISION_SIZES.items() if name.startswith(start)), SIZE)
    arguments: dict[str, Any] = {"weights": None}
    if name in torchvision.models.list_models(module=torchvision.models.segmentation):
        arguments |= {"weights_backbone": None}
        if not name.startswith("lraspp"):
            arguments |= {"aux_loss": True}  # a second output
    if name.startswith("vit_"):
        arguments |= {"image_size": size}
    family = name.replace("_", "-").split("-")[0].rstrip("0123456789")
    return Network("torchvision", name, family, size, partial(torchvision.models.get_model, name, **arguments))
