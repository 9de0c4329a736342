"""Prompts and answers as the multimodal templates of LLaMA-Factory 0.9.5 render them, special tokens included."""

# ruff: noqa: E501

# Names, prompt, answer. Images are encoded as six placeholders, and some system texts are shortened.
TEMPLATES = (
    (
        "dots_ocr",
        "<|user|><|img|><|imgpad|><|imgpad|><|imgpad|><|imgpad|><|imgpad|><|imgpad|><|endofimg|>{question}<|endofuser|><|assistant|>",
        "{answer}<|endofassistant|>",
    ),
    (
        "ernie_vl",
        "User: Picture 1:<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_PLACEHOLDER|><|IMAGE_PLACEHOLDER|><|IMAGE_PLACEHOLDER|><|IMAGE_PLACEHOLDER|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>{question}",
        "\nAssistant: {answer}<|end_of_sentence|>",
    ),
    (
        "gemma3 gemma3n",
        "<bos><start_of_turn>user\n\n\n<start_of_image><image_soft_token><image_soft_token><image_soft_token><image_soft_token><image_soft_token><image_soft_token><end_of_image>\n\n{question}<end_of_turn>\n<start_of_turn>model\n",
        "{answer}<end_of_turn>\n",
    ),
    (
        "gemma4 gemma4n",
        "<bos><|turn>system\n<|think|>You are a helpful assistant.<turn|>\n<|turn>user\n<|image><|image|><|image|><|image|><|image|><|image|><|image|><image|>{question}<turn|>\n<|turn>model\n",
        "{answer}<turn|>\n",
    ),
    (
        "glm4v glm4_5v glm_ocr",
        "[gMASK]<sop><|user|>\n<|begin_of_image|><|image|><|image|><|image|><|image|><|image|><|image|><|end_of_image|>{question}<|assistant|>",
        "\n{answer}",
    ),
    (
        "granite3_vision",
        "<|system|>\nA chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite answers to the user's questions.\n<|user|>\n<image><image><image><image><image><image>{question}\n<|assistant|>\n",
        "{answer}</s>",
    ),
    (
        "intern_vl",
        "<s><|im_start|>system\nYou are InternVL.<|im_end|>\n<|im_start|>user\n<img><IMG_CONTEXT><IMG_CONTEXT><IMG_CONTEXT><IMG_CONTEXT><IMG_CONTEXT><IMG_CONTEXT></img>{question}<|im_end|>\n<|im_start|>assistant\n",
        "{answer}<|im_end|>\n",
    ),
    (
        "intern_s1",
        "<s><|im_start|>user\n<img><IMG_CONTEXT><IMG_CONTEXT><IMG_CONTEXT><IMG_CONTEXT><IMG_CONTEXT><IMG_CONTEXT></img>{question}<|im_end|>\n<|im_start|>assistant\n",
        "{answer}<|im_end|>\n",
    ),
    (
        "keye_vl qwen3_omni qwen3_omni_nothink qwen3_vl qwen3_vl_nothink qwen3_5 qwen3_5_nothink qwen3_6",
        "<|im_start|>user\n<|vision_start|><|image_pad|><|image_pad|><|image_pad|><|image_pad|><|image_pad|><|image_pad|><|vision_end|>{question}<|im_end|>\n<|im_start|>assistant\n",
        "{answer}<|im_end|>\n",
    ),
    (
        "kimi_vl",
        "<|im_system|>system<|im_middle|>You are a helpful assistant<|im_end|><|im_user|>user<|im_middle|><|media_start|>image<|media_content|><|media_pad|><|media_pad|><|media_pad|><|media_pad|><|media_pad|><|media_pad|><|media_end|>{question}<|im_end|><|im_assistant|>assistant<|im_middle|>",
        "{answer}<|im_end|>",
    ),
    (
        "lfm2_vl",
        "<|im_start|>system\nYou are a helpful multimodal assistant by Liquid AI.<|im_end|>\n<|im_start|>user\n<|image_start|><image><image><image><image><image><image><|image_end|>{question}<|im_end|>\n<|im_start|>assistant\n",
        "{answer}<|im_end|>\n",
    ),
    (
        "llama4",
        "<|begin_of_text|><|header_start|>user<|header_end|>\n\n<|image_start|><|image|><|patch|><|patch|><|tile_x_separator|><|image_end|>{question}<|eot|><|header_start|>assistant<|header_end|>\n\n",
        "{answer}<|eot|>",
    ),
    (
        "mllama",
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n<|image|><|image|><|image|><|image|><|image|><|image|>{question}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "{answer}<|eot_id|>",
    ),
    (
        "llava llava_next llava_next_video video_llava",
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite answers to the user's questions.USER: <image><image><image><image><image><image>{question} ASSISTANT:",
        "{answer}</s>",
    ),
    (
        "llava_next_llama3",
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n<image><image><image><image><image><image>{question}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "{answer}<|eot_id|>",
    ),
    (
        "llava_next_mistral llava_next_video_mistral",
        "<s>[INST] <image><image><image><image><image><image>{question}[/INST]",
        " {answer}</s>",
    ),
    (
        "llava_next_qwen",
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<image><image><image><image><image><image>{question}<|im_end|>\n<|im_start|>assistant\n",
        "{answer}<|im_end|>\n",
    ),
    (
        "llava_next_yi llava_next_video_yi",
        "<|im_start|>user\n<image><image><image><image><image><image>{question}<|im_end|>\n<|im_start|>assistant\n",
        "{answer}<|im_end|>\n",
    ),
    (
        "mimo_vl",
        "<|im_start|>system\nYou are MiMo, an AI assistant developed by Xiaomi.<|im_end|>\n<|im_start|>user\n<|vision_start|><|image_pad|><|image_pad|><|image_pad|><|image_pad|><|image_pad|><|image_pad|><|vision_end|>{question}<|im_end|>\n<|im_start|>assistant\n",
        "{answer}<|im_end|>\n",
    ),
    (
        "minicpm_v minicpm_v_4_6",
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<image_id>0</image_id><image><unk><unk><unk><unk><unk><unk></image>\n{question}<|im_end|>\n<|im_start|>assistant\n",
        "{answer}<|im_end|>\n",
    ),
    (
        "minicpm_o",
        "<|im_start|>system\nYou are a helpful assistant. You can accept audio and text input and output voice and text.<|im_end|>\n<|im_start|>user\n<image_id>0</image_id><image><unk><unk><unk><unk><unk><unk></image>\n{question}<|im_end|>\n<|im_start|>assistant\n",
        "{answer}<|im_end|>\n",
    ),
    (
        "mistral_small ministral3 pixtral",
        "<s>[INST][IMG][IMG][IMG_BREAK][IMG][IMG][IMG_END]{question}[/INST]",
        "{answer}</s>",
    ),
    (
        "paligemma",
        "<image><image><image><image><image><image><bos>{question}\n",
        "{answer}</s>",
    ),
    (
        "paligemma_chat",
        "<image><image><image><image><image><image><bos><start_of_turn>user\n{question}<end_of_turn>\n<start_of_turn>model\n",
        "{answer}<end_of_turn>\n",
    ),
    (
        "qwen2_audio",
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|audio_bos|><|AUDIO|><|AUDIO|><|AUDIO|><|audio_eos|>{question}<|im_end|>\n<|im_start|>assistant\n",
        "{answer}<|im_end|>\n",
    ),
    (
        "qwen2_omni",
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_bos|><|IMAGE|><|IMAGE|><|IMAGE|><|IMAGE|><|IMAGE|><|IMAGE|><|vision_eos|>{question}<|im_end|>\n<|im_start|>assistant\n",
        "{answer}<|im_end|>\n",
    ),
    (
        "qwen2_vl",
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|><|image_pad|><|image_pad|><|image_pad|><|image_pad|><|image_pad|><|image_pad|><|vision_end|>{question}<|im_end|>\n<|im_start|>assistant\n",
        "{answer}<|im_end|>\n",
    ),
    (
        "yi_vl",
        "This is a chat between an inquisitive human and an AI assistant. Assume the role of the AI assistant. Read all the images carefully, and respond to the human's questions with informative, helpful, detailed and polite answers.\n\n### Human: <image><image><image><image><image><image>{question}\n### Assistant:",
        "{answer}\n",
    ),
    (
        "youtu_vl",
        "<|begin_of_text|>system\nYou are a helpful assistant.<|end_of_text|>\n<|begin_of_text|>user\n<|vision_start|><|image_pad|><|image_pad|><|image_pad|><|image_pad|><|image_pad|><|image_pad|><|vision_end|>{question}<|end_of_text|>\n<|begin_of_text|>assistant\n",
        "{answer}<|end_of_text|>\n",
    ),
)
