"""What produces the figures in docs/benchmarks/: `python benchmarks/run.py --help`.

Imports point one way: a module imports none but those that stand before it here.

    what needs Python alone   sources packages settings arguments
    measuring                 references device timing runner traffic rank_processes tables
    models                    configs families plain_gpt baseline_megatron baseline_models
    cases                     kernel_runs scores_cases attention_cases hidden_cases bitwise step_cases largest_batch
    models as they are        any_model_shapes any_model_ways any_model_compiled any_model_ckptplan allocations threads
                              any_model_steps any_model_budgets operator_cost
    several ranks             scale_trainers scale_ranks
    a run of the runner       headline parts targets scale_targets scale scale_tables
                              any_model any_model_targets any_model_tables report session run
    a run on a GPU            gpu.child gpu.carried gpu.origin gpu.device_record gpu.plugin gpu.parts gpu.suite
                              gpu.benchmark gpu.compile_ahead gpu.report gpu.run gpu.__main__
    by themselves             not_measured memory_growth data_wait checkpoint_stall prepare
"""
