"""The complete description of a training run."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass

KINDS = ("image", "video", "ref")
DITS = ("frozen", "lora", "full")
ADAPTERS = ("lora", "dora")
OPTIMIZERS = ("adamw", "adamw8bit", "adafactor", "prodigy", "muon")
SCHEDULES = ("constant", "cosine", "official")
LOSS_WEIGHTS = ("bell", "even")
TIMESTEP_SAMPLINGS = ("spread", "uniform")
PRECISIONS = ("bf16", "fp32")
BASE_DTYPES = ("bf16", "fp8", "fp32")
TRACKERS = ("tensorboard", "wandb", "trackio")
EXPORTS = ("training", "comfyui", "diffusers")
ARCHITECTURES = ("5B", "14B", "tiny", "nano")
OBJECTIVES = ("flow_match", "distill")


@dataclass(frozen=True, kw_only=True)
class Config:
    """A run. Every recipe returns a whole one; on the command line each field is a flag of the same name."""

    recipe: str
    """Name of the recipe that this came from."""
    architecture: str = "5B"
    """The model that the recipe is for: "5B", "14B", "tiny" or "nano". The files themselves say what they are."""

    # The model
    model: str = ""
    """A released folder or its name on the hub; or the base DiT (file or folder of shards); or ComfyUI's DiT file."""
    mllm: str = ""
    """Qwen2.5-VL's folder, for a base DiT; or ComfyUI's language model file."""
    vae: str = ""
    """The Wan VAE as safetensors, where the model is no released folder."""
    connector: str = ""
    """ComfyUI's connector file, for ComfyUI's DiT file."""
    start: str = ""
    """Training checkpoint (or the folder of a finished run) that the run starts from, such as the stage before."""
    ref_pad_first: bool = False
    """References stand before the video; only where the model's own files do not say."""

    # What is trained
    dit: str = "full"
    """The video DiT: "frozen", "lora" or "full"."""
    dit_rank: int = 128
    """Rank of the DiT's adapters; alpha is the rank, unless ``alpha`` says otherwise."""
    dit_targets: tuple[str, ...] = ("attn1.*", "attn2.*", "ffn.*")
    """Layers of a block with adapters, as patterns of diffusers' names."""
    mllm_rank: int = 64
    """Rank of the language model's adapters; 0 for none."""
    mllm_targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    """Linear layers of the language model with adapters."""
    adapter: str = "lora"
    """"lora" or "dora" (with trained magnitudes)."""
    alpha: float = 0.0
    """Alpha of all adapters; 0 for their rank."""
    dropout: float = 0.0
    """Dropout before the adapters."""
    queries: tuple[str, ...] = KINDS
    """Learnable queries that are trained, by the kind of sample that they serve."""
    train_connector: bool = True
    """The query connector."""
    train_ref_connector: bool = True
    """The reference connector."""
    train_source_embedder: bool = True
    """The patch embedder of the source."""
    train_ref_embedder: bool = True
    """The patch embedder of references."""

    # Data
    data: tuple[str, ...] = ()
    """Tables (CSV, JSON, JSONL), parquet files, tar shards, folders of clips; see training/README.md."""
    data_root: str = ""
    """Folder that the paths in all tables and parquet files start from; by default that of each."""
    kinds: tuple[str, ...] = ()
    """Kinds of samples ("image", "video", "ref") in the order of their turns; empty for all that are there."""
    use_source: bool = True
    """Whether the DiT is given the source; the published first stage does without."""
    max_pixels: int = 720 * 1280
    """Largest area of a frame; larger ones are scaled down."""
    max_frames: int = 81
    """Most frames of a clip, 4k + 1; longer ones are cut."""
    frame_rate: float = 0.0
    """Clips are resampled to so many frames a second; 0 takes the frames as they are."""
    aspects: tuple[str, ...] = ()
    """Shapes that frames are cropped to, such as "16:9"; empty for each clip's own."""
    lengths: tuple[int, ...] = ()
    """Numbers of frames that clips are cut to, each 4k + 1; empty for each clip's own."""
    reference_scales: int = 8
    """Sizes, from 0.7 to 1, in which the VAE is shown a reference; 0 draws any, as published, which no cache holds."""
    mllm_max_pixels: int = 262144
    """Largest frame for the language model: 262144 as at inference; 0 for the published training's 602112."""
    batch_size: int = 1
    """Samples of one shape that are computed at once."""
    workers: int = 2
    """Processes that decode clips, for each kind of samples and in each process of the run."""
    cache: str = ""
    """Folder with latents and features that ``cache`` made; they are used where they are there."""
    max_broken_share: float = 0.05
    """The run stops when more of the samples than this cannot be read."""
    epochs: str = "own"
    """"own" shuffles each kind when all of it was seen; "shortest" all kinds with the smallest, as published."""
    validation_data: tuple[str, ...] = ()
    """Rows for validation, as ``data``; without them ``validation_rows`` of the data are held out."""
    validation_rows: int = 0
    """How many rows of each kind are held out."""

    # The objective
    objective: str = "flow_match"
    """"flow_match", or "distill" for fewer steps."""
    rounding: str = "shipped"
    """"shipped" rounds timesteps and vision pixels to bfloat16, as published; "none" does not."""
    timestep_sampling: str = "spread"
    """"spread" has successive samples fill the range evenly; "uniform" draws each on its own, as published."""
    loss_weights: str = "bell"
    """"bell" counts the middle of the schedule most and its ends hardly, as published; "even" all of it the same."""
    student_steps: int = 4
    """Steps of the distilled model."""
    teacher_steps: int = 4
    """Steps of the teacher for each one of the student."""
    shift: float = 5.0
    """Time shift of the distilled model's schedule."""

    # Optimisation
    steps: int = 1000
    """Updates of the weights."""
    accumulation: int = 0
    """Batches an update; 0 for one of each kind."""
    lr: float = 1e-5
    """Learning rate; 1 for Prodigy."""
    optimizer: str = "adamw"
    """"adamw", "adamw8bit" (bitsandbytes or torchao), "adafactor", "prodigy" (prodigyopt) or "muon" (of
    matrices, AdamW of all else)."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Of AdamW (Muon's too) and Prodigy."""
    weight_decay: float = 0.01
    """Decoupled weight decay."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm; 0 for no clipping."""
    schedule: str = "constant"
    """"constant" or "cosine" after a warm-up, or "official" (a third of the rate for five steps)."""
    warmup_steps: int = 0
    """Steps of linear warm-up."""
    ema_decay: float = 0.0
    """Decay of the averaged weights, which are then validated, sampled and exported; 0 for none."""

    # Precision and memory
    precision: str = "bf16"
    """Of the computation: "bf16" (autocast; trained weights are float32) or "fp32"."""
    base_dtype: str = "bf16"
    """Of frozen weights: "bf16", "fp8" (scaled float8, computed in bf16) or "fp32"."""
    checkpointing: bool = True
    """Compute the activations of DiT and language model again in the backward pass."""

    compile: bool = False
    """Fuse the DiT's blocks with torch.compile, once for each shape: minutes at first, then faster updates."""
    deterministic: bool = False
    """Slower kernels on a GPU that give the same bits in every run; a CPU's always do."""

    # The run
    output: str = ""
    """Folder of the run."""
    seed: int = 0
    """Of everything that is drawn."""
    save_every: int = 500
    """Steps between checkpoints."""
    keep_checkpoints: int = 2
    """Newest checkpoints that are kept."""
    keep_every: int = 0
    """Checkpoints of every so many steps are kept for good; 0 for none."""
    validate_every: int = 500
    """Steps between validations; 0 for none."""
    validation_timesteps: tuple[int, ...] = (100, 300, 500, 700, 900)
    """Indices of the schedule (0 noise, 999 nearly clean) at which validation rows are measured."""
    sample_every: int = 0
    """Steps between sample clips, from validation rows if there are any; 0 for none."""
    sample_rows: int = 2
    """How many rows are sampled."""
    sample_steps: int = 30
    """Steps of a sample clip."""
    trackers: tuple[str, ...] = ("tensorboard",)
    """"tensorboard", "wandb", "trackio"; the numbers are always in metrics.jsonl too."""
    exports: tuple[str, ...] = ("training",)
    """Written at the end: "training" (official layout), "comfyui" (a LoRA), "diffusers" (a whole folder)."""
    device: str = ""
    """"cpu" computes there even if there is a GPU."""

    def __post_init__(self):
        for name, known in (
            ("architecture", ARCHITECTURES),
            ("dit", DITS),
            ("adapter", ADAPTERS),
            ("objective", OBJECTIVES),
            ("rounding", ("shipped", "none")),
            ("timestep_sampling", TIMESTEP_SAMPLINGS),
            ("loss_weights", LOSS_WEIGHTS),
            ("epochs", ("own", "shortest")),
            ("optimizer", OPTIMIZERS),
            ("schedule", SCHEDULES),
            ("precision", PRECISIONS),
            ("base_dtype", BASE_DTYPES),
            ("device", ("", "cpu")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; use one of {', '.join(filter(None, known))}.")
        for name, known in (("queries", KINDS), ("kinds", KINDS), ("trackers", TRACKERS), ("exports", EXPORTS)):
            for value in getattr(self, name):
                if value not in known:
                    raise ValueError(f"{name} holds {value!r}; use {', '.join(known)}.")
        for name, low in (
            *(("steps", 1), ("batch_size", 1), ("workers", 0), ("accumulation", 0), ("max_pixels", 32 * 32)),
            *(("mllm_rank", 0), ("save_every", 1), ("keep_checkpoints", 1), ("keep_every", 0), ("validate_every", 0)),
            *(("sample_every", 0), ("sample_steps", 1), ("reference_scales", 0), ("warmup_steps", 0)),
            *(("student_steps", 1), ("teacher_steps", 1), ("validation_rows", 0), ("sample_rows", 1)),
        ):
            if getattr(self, name) < low:
                raise ValueError(f"{name} is {getattr(self, name)}; use {low} or more.")
        for name in ("sample_steps", "student_steps", "teacher_steps"):
            if getattr(self, name) > 1000:
                raise ValueError(f"{name} is {getattr(self, name)}; use at most 1000.")
        if not self.lr:
            raise ValueError("lr is 0, which trains nothing; use a number above 0.")
        if self.optimizer == "prodigy" and self.lr < 0.1:
            raise ValueError(f"lr is {self.lr:g}, by which Prodigy multiplies the rate that it finds; use --lr 1.")
        if not self.validation_timesteps:
            raise ValueError("validation_timesteps is empty; use --validate-every 0 for no validation.")
        if self.dit == "lora" and self.dit_rank < 1:
            raise ValueError(f"dit_rank is {self.dit_rank}; use 1 or more, or --dit frozen.")
        for name in ("max_frames", "lengths"):
            counts = getattr(self, name)
            for count in counts if isinstance(counts, tuple) else (counts,):
                if count < 1 or count % 4 != 1:
                    raise ValueError(f"{name} holds {count}; use numbers of the form 4k + 1, such as 81.")
        for name, low, high in (
            *(("lr", 0, 10), ("ema_decay", 0, 0.999999), ("dropout", 0, 0.9), ("max_broken_share", 0, 1)),
            *(("weight_decay", 0, 10), ("max_grad_norm", 0, float("inf")), ("frame_rate", 0, 1000)),
            *(("alpha", 0, 1_000_000), ("shift", 0.01, 100)),
        ):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} is {getattr(self, name)}; use a number from {low} to {high}.")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas holds {self.betas}; use numbers from 0 to below 1.")
        if self.mllm_max_pixels and self.mllm_max_pixels < 4 * 28**2:
            raise ValueError(f"mllm_max_pixels is {self.mllm_max_pixels}; use 3136 or more, or 0.")
        for timestep in self.validation_timesteps:
            if not 0 <= timestep <= 999:
                raise ValueError(f"validation_timesteps holds {timestep}; use numbers from 0 to 999.")
        for aspect in self.aspects:
            parts = aspect.split(":")
            if len(parts) != 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
                raise ValueError(f"aspects holds {aspect!r}; write width:height, such as 16:9.")
        if self.adapter == "dora" and self.objective == "distill":
            raise ValueError("The distilled model is a LoRA beside its teacher; use --adapter lora.")
        if self.objective == "distill" and (self.dit != "lora" or self.mllm_rank or self.trains_mllm):
            raise ValueError("Only the DiT's LoRA can be distilled; use a distill recipe as it is.")
        if self.save_every > self.steps:
            object.__setattr__(self, "save_every", self.steps)

    @property
    def trains_mllm(self) -> bool:
        """Whether the context changes in training, so that it cannot be cached."""
        return bool(self.mllm_rank or self.queries or self.train_connector or self.train_ref_connector)

    @property
    def name(self) -> str:
        """The run's, which is that of its output folder."""
        return os.path.basename(os.path.abspath(self.output))

    def replace(self, **changes) -> Config:
        """A copy with other values."""
        return dataclasses.replace(self, **changes)


OFFICIAL = {
    "timestep_sampling": "uniform",
    "loss_weights": "bell",
    "epochs": "shortest",
    "rounding": "shipped",
    "schedule": "official",
    "mllm_max_pixels": 0,
    "reference_scales": 0,
    "batch_size": 1,
    "aspects": (),
    "lengths": (),
    "frame_rate": 0.0,
    "ema_decay": 0.0,
    "warmup_steps": 0,
    "accumulation": 0,
    "optimizer": "adamw",
    "weight_decay": 0.01,
    "betas": (0.9, 0.999),
    "max_grad_norm": 1.0,
    "alpha": 0.0,
    "dropout": 0.0,
}
"""What ``--official`` sets: the published behaviour wherever ours differs."""
