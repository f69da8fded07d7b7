"""Type stub of the native module, written by python/write_stub.py from its docstrings.

csrc/<op>/<op>.h and csrc/<op>/cuda.h say what the functions compute. Addresses and sizes are int.
"""

# Address (0: none), dtype code, rows, columns, row stride in elements.
View = tuple[int, int, int, int, int]
# A right operand in panels: address, dtype code, rows and columns before packing.
Packed = tuple[int, int, int, int]

CACHE_GRID_PAD: int
CANDIDATE_PAD: int
CODE_BOUNDS: int
MAX_CODE_WIDTH: int
PANEL: int
RANK_BLOCK: int

def active_bf16() -> bool: ...
def active_dot() -> bool: ...
def active_isa() -> str: ...
def adamw(
    dtype: int,
    size: int,
    parameter: int,
    gradient: int,
    first: int,
    second: int,
    rate: float,
    decay: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    step: int,
    threads: int,
) -> None: ...
def blend_logits(
    x: View,
    right: Packed,
    classes: int,
    bridged: bool,
    weights: int,
    alpha: float,
    beta: float,
    gamma: float,
    lambda1: float,
    lambda2: float,
    lambda3: float,
    labels: int,
    logits: int,
    z1: int,
    z2: int,
    z3: int,
    threads: int,
) -> None: ...
def build_config() -> dict[str, str]: ...
def code_panel_bytes(cols: int) -> int: ...
def count_cache_grid(
    cosines: View,
    text: View,
    labels: int,
    lower: int,
    layers: int,
    layer_count: int,
    weights: View,
    betas: int,
    beta_count: int,
    alphas: int,
    alpha_count: int,
    correct: int,
    threads: int,
) -> None: ...
def count_correct(
    dtype: int,
    rows: int,
    labels: int,
    label_z1: int,
    label_z2: int,
    label_z3: int,
    label_d: int,
    offsets: int,
    candidates: int,
    z1: int,
    z2: int,
    z3: int,
    d: int,
    exponents: int,
    largest_exponent: float,
    trials: int,
    params: int,
    correct: int,
    threads: int,
) -> None: ...
def isa_table() -> dict[str, tuple[bool, bool]]: ...
def matrix_product(
    a: View, transposed_a: bool, b: View, transposed_b: bool, out: View, accumulate: bool, threads: int
) -> None: ...
def pack_matrix(matrix: View, dtype: int, out: int) -> None: ...
def packed_elements(rows: int, cols: int) -> int: ...
def prefer_huge_pages(data: int, bytes: int) -> None: ...
def prune_candidates(
    z1: View,
    z2: View,
    z3: View,
    labels: int,
    exponents: int,
    margin: float,
    candidates: int,
    counts: int,
    threads: int,
) -> None: ...
def quantize_rows(rows: View, codes: int, bounds: int, threads: int) -> None: ...
def rank_counts(
    queries: View,
    gallery: View,
    num_queries: int,
    query_rows: int,
    marked: int,
    marked_begin: int,
    marked_end: int,
    exclude: int,
    offsets: int,
    scores: int,
    greater: int,
    equal: int,
    in_order: int,
    symmetric: bool,
    workspace: int,
    threads: int,
) -> None: ...
def rank_counts_workspace(offsets: int, n: int, threads: int) -> int: ...
def rank_metrics(
    n: int, offsets: int, greater: int, equal: int, recall_at: int, num_k: int, out: int
) -> None: ...
def set_isa(name: str) -> None: ...
def sort_labels(labels: int, s: int, num_classes: int, order: int, offsets: int) -> int: ...
def support_logits(
    queries: View,
    keys: View,
    order: int,
    offsets: int,
    num_classes: int,
    weights: int,
    beta: float,
    out: int,
    workspace: int,
    threads: int,
) -> None: ...
def support_logits_workspace(n: int, s: int) -> int: ...
def symmetric_kl(a: View, b: View, temperature: float, rows: int, stats: int, threads: int) -> None: ...
def symmetric_kl_bwd(
    a: View, b: View, temperature: float, grad: int, stats: int, grad_a: View, grad_b: View, threads: int
) -> None: ...
def topk(
    queries: View,
    gallery: View,
    k: int,
    exclude: int,
    allow: int,
    begin: int,
    end: int,
    scores: int,
    indices: int,
    workspace: int,
    threads: int,
) -> None: ...
def topk_filtered(
    queries: View,
    gallery: View,
    codes: int,
    bounds: int,
    k: int,
    exclude: int,
    allow: int,
    begin: int,
    end: int,
    scores: int,
    indices: int,
    workspace: int,
    threads: int,
) -> dict[str, int]: ...
def topk_filtered_workspace(n: int, g: int, k: int, threads: int) -> int: ...
def topk_workspace(n: int, g: int, k: int, compute: int, threads: int) -> int: ...
def tree_attention(
    queries: View,
    keys: View,
    values: View,
    heads: int,
    paths: int,
    num_paths: int,
    length: int,
    path_of: int,
    counts: int,
    out: View,
    threads: int,
) -> None: ...
def tree_attention_bwd(
    queries: View,
    keys: View,
    values: View,
    heads: int,
    paths: int,
    num_paths: int,
    length: int,
    path_of: int,
    counts: int,
    grad_out: View,
    grad_queries: View,
    grad_keys: View,
    grad_values: View,
    threads: int,
) -> None: ...

class ClassBatch:
    def __init__(self, dtype: int, offsets: int, width: int) -> None: ...
    def row_loss(
        self,
        first: int,
        last: int,
        x: View,
        coefficient: float,
        scale: int,
        add: int,
        loss: int,
        dot: int,
        sums: int,
        threads: int,
    ) -> None: ...
    def shot_dots(self, first: int, last: int, e: int, h: int, q: int, threads: int) -> None: ...
    def shot_grads(
        self,
        first: int,
        last: int,
        e: int,
        h: int,
        r: int,
        q: int,
        dot: int,
        grad_mean: int,
        grad_tau: int,
        threads: int,
    ) -> None: ...
    def shot_norms(
        self, first: int, last: int, e: int, tau: int, r: int, mean: int, threads: int
    ) -> None: ...

class FrozenTower:
    def __init__(
        self,
        compute: int,
        stored: int,
        width: int,
        heads: int,
        features: int,
        vectors: int,
        activation: int,
        norm_pre: tuple[int, int, float],
        norm_final: tuple[int, int, float],
        projection: tuple[int, int, int, int, int],
        bf16_products: bool,
    ) -> None: ...
    def add_layer(
        self,
        norm1: tuple[int, int, float],
        norm2: tuple[int, int, float],
        qkv: tuple[int, int, int, int, int],
        out: tuple[int, int, int, int, int],
        fc: tuple[int, int, int, int, int],
        proj: tuple[int, int, int, int, int],
        prefix: int,
        query: int,
    ) -> None: ...
    def descend(
        self,
        samples: int,
        tokens: int,
        exp_avg: int,
        exp_avg_sq: int,
        targets: int,
        losses: int,
        step_begin: int,
        step_end: int,
        grad_scale: float,
        lr: float,
        beta1: float,
        beta2: float,
        eps: float,
        weight_decay: float,
        record_steps: list[int],
        recorded: int,
        workspace: int,
        threads: int,
    ) -> None: ...
    def evaluate(
        self,
        samples: int,
        tokens: int,
        features: int,
        unit: bool,
        grad_features: int,
        grad_tokens: int,
        workspace: int,
        threads: int,
    ) -> None: ...
    def set_slots(
        self,
        source: list[int],
        visible: list[list[int]],
        prefix: int,
        base: int,
        slot_stride: int,
        sample_stride: int,
    ) -> None: ...
    def workspace(self, samples: int, threads: int) -> int: ...

class Projection:
    def __init__(
        self,
        first: Packed,
        normalize_first: bool,
        scale_first: float,
        second: Packed = (0, 0, 0, 0),
        normalize_second: bool = False,
        scale_second: float = 1.0,
        residual: bool = False,
    ) -> None: ...
    def run(
        self,
        x: int,
        x_dtype: int,
        n: int,
        x_stride: int,
        out: int,
        out_stride: int,
        bias: int = 0,
        bias_stride: int = 0,
        norms: int = 0,
        threads: int = 1,
    ) -> None: ...

# Only in builds with CUDA.
TOPK_CUDA_MAX: int

def activate_cuda(kind: int, x: View, y: View, device: int, stream: int) -> None: ...
def activate_grad_cuda(kind: int, x: View, grad: View, device: int, stream: int) -> None: ...
def adamw_cuda(
    samples: int,
    vectors: int,
    width: int,
    slots: int,
    source: int,
    grad_x: View,
    tokens: int,
    exp_avg: int,
    exp_avg_sq: int,
    rates: int,
    corrections: int,
    step_now: int,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    grad_factor: float,
    base: int,
    base_samples: int,
    x: View,
    device: int,
    stream: int,
) -> None: ...
def adamw_flat_cuda(
    size: int,
    parameter: int,
    gradient: int,
    first: int,
    second: int,
    table: int,
    step_now: int,
    step: int,
    beta1: float,
    beta2: float,
    eps: float,
    device: int,
    stream: int,
) -> None: ...
def add_halves_cuda(
    raw: View, parts: int, bounds: int, split: int, out: View, accumulate: bool, device: int, stream: int
) -> None: ...
def attention_cuda(
    qkv: View,
    samples: int,
    heads: int,
    slots: int,
    queries: int,
    prefix: int,
    prefix_kv: int,
    visible: int,
    lse: int,
    o: View,
    device: int,
    stream: int,
) -> None: ...
def attention_cuda_phase(
    qkv: View,
    samples: int,
    heads: int,
    slots: int,
    queries: int,
    prefix: int,
    prefix_kv: int,
    visible: int,
    lse: int,
    o: View,
) -> bytes: ...
def attention_grad_cuda(
    qkv: View,
    samples: int,
    heads: int,
    slots: int,
    queries: int,
    prefix: int,
    prefix_kv: int,
    visible: int,
    lse: int,
    grad_o: View,
    grad_qkv: int,
    device: int,
    stream: int,
) -> None: ...
def attention_grad_cuda_phase(
    qkv: View,
    samples: int,
    heads: int,
    slots: int,
    queries: int,
    prefix: int,
    prefix_kv: int,
    visible: int,
    lse: int,
    grad_o: View,
    grad_qkv: int,
) -> bytes: ...
def bias_loss_cuda(
    classes: int,
    width: int,
    weight: float,
    tau: int,
    norms: int,
    inverse: int,
    grad_tau: int,
    loss: int,
    device: int,
    stream: int,
) -> None: ...
def blend_logits_cuda(
    x: View,
    z: View,
    classes: int,
    rank: int,
    weights: int,
    alpha: float,
    beta: float,
    gamma: float,
    lambda1: float,
    lambda2: float,
    lambda3: float,
    labels: int,
    logits: int,
    device: int,
    stream: int,
) -> None: ...
def class_sums_cuda(
    classes: int,
    offsets: int,
    row_begin: int,
    x: View,
    norms: int,
    extra: int,
    out: int,
    device: int,
    stream: int,
) -> None: ...
def class_sums_halves_cuda(
    classes: int,
    offsets: int,
    row_begin: int,
    x: View,
    left: int,
    bound: int,
    out: int,
    device: int,
    stream: int,
) -> None: ...
def cosine_loss_cuda(
    features: View,
    targets: View,
    grad_scale: float,
    step: int,
    step_now: int,
    losses: int,
    grad: View,
    unit: int,
    device: int,
    stream: int,
) -> None: ...
def cut_rows_cuda(x: View, copies: int, out: int, scale: int, device: int, stream: int) -> None: ...
def few_rows_cuda(
    x: View,
    weight: View,
    transposed: bool,
    before: tuple[int, tuple[int, int, float, int, int, int], View, View, View],
    behind: tuple[int, tuple[int, int, float, int, int, int], int, View, int, View],
    y: View,
    sums: int,
    tickets: int,
    device: int,
    stream: int,
) -> None: ...
def few_rows_cuda_phase(
    x: View,
    weight: View,
    transposed: bool,
    before: tuple[int, tuple[int, int, float, int, int, int], View, View, View],
    behind: tuple[int, tuple[int, int, float, int, int, int], int, View, int, View],
    y: View,
    sums: int,
    tickets: int,
) -> bytes: ...
def few_rows_cuda_sums(rows: int, k: int, cols: int) -> int: ...
def few_rows_cuda_tickets(rows: int, cols: int) -> int: ...
def few_rows_cuda_tiles(cols: int) -> int: ...
def layer_norm_cuda(
    x: View,
    delta: View,
    total: View,
    weight: int,
    bias: int,
    eps: float,
    y: View,
    mean: int,
    rstd: int,
    device: int,
    stream: int,
) -> None: ...
def layer_norm_cuda_phase(
    x: View, delta: View, total: View, weight: int, bias: int, eps: float, y: View, mean: int, rstd: int
) -> bytes: ...
def layer_norm_grad_cuda(
    x: View,
    grad_y: View,
    weight: int,
    mean: int,
    rstd: int,
    residual: View,
    grad_x: View,
    device: int,
    stream: int,
) -> None: ...
def layer_norm_grad_cuda_phase(
    x: View, grad_y: View, weight: int, mean: int, rstd: int, residual: View, grad_x: View
) -> bytes: ...
def normalize_rows_cuda(
    x: View, bias: View, normalize: bool, scale: float, out: View, norms: int, device: int, stream: int
) -> None: ...
def project_normalize_cuda(
    x: View,
    matrix: View,
    bias: View,
    normalize: bool,
    scale: float,
    out: View,
    norms: int,
    raw: int,
    tickets: int,
    device: int,
    stream: int,
) -> None: ...
def project_normalize_cuda_tickets(n: int) -> int: ...
def row_dots_cuda(
    rows: int, width: int, a: int, b: int, q: int, inverse: int, device: int, stream: int
) -> None: ...
def row_loss_cuda(
    x: View,
    labels: int,
    coefficient: float,
    scale: int,
    add: int,
    loss: int,
    dot: int,
    device: int,
    stream: int,
) -> None: ...
def row_loss_halves_cuda(
    x: View,
    labels: int,
    coefficient: float,
    scale: int,
    add: int,
    loss: int,
    dot: int,
    left: int,
    right: int,
    bound: int,
    device: int,
    stream: int,
) -> None: ...
def scale_rows_cuda(x: View, out: View, device: int, stream: int) -> None: ...
def shot_grads_cuda(
    rows: int,
    width: int,
    labels: int,
    offsets: int,
    e: int,
    h: int,
    r: int,
    inverse_q: int,
    dot: int,
    grad_mean: int,
    device: int,
    stream: int,
) -> None: ...
def shot_norms_cuda(
    rows: int, width: int, labels: int, e: int, tau: int, r: int, device: int, stream: int
) -> None: ...
def symmetric_kl_bwd_cuda(
    a: View,
    b: View,
    temperature: float,
    grad: int,
    stats: int,
    grad_a: View,
    grad_b: View,
    device: int,
    stream: int,
) -> None: ...
def symmetric_kl_cuda(
    a: View, b: View, temperature: float, rows: int, stats: int, device: int, stream: int
) -> None: ...
def topk_filter_cuda(
    scores: View,
    first: int,
    fresh: bool,
    k: int,
    splits: int,
    exclude: int,
    best: int,
    rows: int,
    device: int,
    stream: int,
) -> None: ...
def topk_merge_cuda(
    n: int, k: int, splits: int, best: int, rows: int, scores: int, indices: int, device: int, stream: int
) -> None: ...
def total_loss_cuda(
    size: int, parts: int, step: int, step_now: int, loss: int, losses: int, device: int, stream: int
) -> None: ...
def tower_step_cuda(
    dtype: int,
    phases: int,
    first: int,
    last: int,
    loss: tuple,
    update: tuple,
    blocks: int,
    arrived: int,
    device: int,
    stream: int,
) -> None: ...
def tower_step_cuda_blocks(dtype: int, device: int) -> int: ...
def tower_step_cuda_bytes() -> int: ...
def tower_step_cuda_heads(phases: bytes, done: int) -> tuple[bytes, int]: ...
def tower_step_cuda_loss() -> bytes: ...
def tower_step_cuda_tiles(phases: bytes) -> int: ...
def tower_step_cuda_update() -> bytes: ...
def unit_grad_cuda(
    rows: int,
    width: int,
    grad: int,
    unit: int,
    norms: int,
    accumulate: bool,
    out: int,
    device: int,
    stream: int,
) -> None: ...
