"""BLIP-2 whose picture encoder is the EfficientNet tower: Hugging Face's class with that one part replaced."""

from transformers import AutoConfig, AutoModelForImageTextToText, Blip2Config, Blip2ForConditionalGeneration, Blip2VisionConfig

from stages.backbone.tower import EfficientNetLiteConfig, EfficientNetLiteTower


class Blip2LiteConfig(Blip2Config):
    """`Blip2Config` with an `EfficientNetLiteConfig` as `vision_config`."""

    model_type = "blip-2-lite"
    sub_configs_defaults = {**Blip2Config.sub_configs_defaults, "vision_config": EfficientNetLiteConfig}


class Blip2LiteForConditionalGeneration(Blip2ForConditionalGeneration):
    """Q-Former, projection, language model, forward and `generate` are `Blip2ForConditionalGeneration`'s."""

    config_class = Blip2LiteConfig

    def __init__(self, config: Blip2LiteConfig):
        vision = config.vision_config
        # The parent builds a ViT of its own, whatever it is given: let that be as small as can be.
        config.vision_config = Blip2VisionConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=0, num_attention_heads=1)
        super().__init__(config)
        config.vision_config = vision
        self.vision_model = EfficientNetLiteTower(vision)


AutoConfig.register(Blip2LiteConfig.model_type, Blip2LiteConfig)
AutoModelForImageTextToText.register(Blip2LiteConfig, Blip2LiteForConditionalGeneration)
