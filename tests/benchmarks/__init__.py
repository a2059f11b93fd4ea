"""Measured comparisons: ``python -m tests.benchmarks`` prints ratios, each with its spread.

Nothing here asserts a time: a speed depends on the machine and on what else it does. What is
printed is a ratio of two sides that took turns in one run, so that both met the same machine.

    steps        a training step / PyTorch eager's; share of the sgemm peak; LoRA / full
    twins        a training step with a textbook pair / with its fast twin (lora_np/ops/fast)
    allocator    what it costs to give memory back to the system after every step
    memory       peak memory of a LoRA step / a full one, activations included
    inference    a merged and an unmerged forward / the base's
    generation   tokens a second with the KV cache / transformers' GPT-2
    ledger       the FLOPs that ``account()`` predicts against measured time over T, d, L and r
    first-step   from process start to the first trained step
    rank         the dense SVD of B A / ``spectrum((B, A))``, and how far their values lie apart
    adapters     ``analyse`` at Llama-7B's size; ``resize`` by a dense SVD / by the factors
    many         a layer with an adapter for each row / the base alone; PEFT's / ours
    sweep        ``lora-np sweep`` in two processes / in one
    llama        all of the six that follow
    llama-steps  a LoRA step of SmolLM2-135M / PyTorch's with PEFT
    llama-memory, llama-quantised, llama-generation, llama-edge
                 its memory; the same over quantised weights; generation / transformers'; a chat
    llama-twins  a LoRA step of SmolLM2-135M with textbook grouped attention / with its fast twin

How a ratio is measured. Each side lives in a process of its own (workers.py), so that their thread
pools never meet; a waiting side blocks on its pipe, and the CPU time that it used while it waited
is printed. In every round each side runs one slice of repetitions; the order turns round from one
round to the next; the first repetition of a slice is not counted. A slice's figure is its median,
a round's ratio is that of two slices, and what is printed is the median over the rounds with the
middle half of them: half of the rounds lie inside.

``benchmarks.json`` holds

    machine      cpu, cores, system, and the versions of Python, NumPy, BLAS and the peers
    settings     the plan: sizes, rounds, seconds a slice, threads
    left_out     what was not measured, each with the reason
    rows         a list; each row has
                     benchmark           one of the names above
                     what, case          what was measured, and of which size
                     unit                "" for a ratio
                     median, low, high   of the rounds: their median and middle half
                     rounds              the figure of every round
                     reference           a goal or a prediction, or null
                     reference_is        "at most", "at least", "predicted" or null
                     verdict             in words, "" where there is no goal
    seconds      median seconds of every side, as "benchmark: side"
    idle_cpu     CPU seconds that a waiting side used for each second of waiting
"""
