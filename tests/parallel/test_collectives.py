"""Collectives and kernels of compiled programs for TPUs and GPUs, which write them in their own ways."""

from motionaura_jax.parallel.collectives import KINDS, Collective, bytes_by_kind, collectives, exposed_by_kind, runs

TPU = """
%begin (param: bf16[16,64]) -> bf16[128,64] {
  %all-gather.1 = bf16[128,64]{0,1:T(8,128)(2,1)} all-gather(%param), channel_id=7, dimensions={0}
}

%end (param: bf16[16,64]) -> bf16[128,64] {
  %all-gather.2 = bf16[128,64]{0,1:T(8,128)(2,1)S(1)} all-gather(%param), channel_id=7, dimensions={0}
}

%body (tuple: (s32[], bf16[16,64])) -> (s32[], bf16[16,64]) {
  %fusion.1 = bf16[128,64]{0,1} fusion(%a), kind=kCustom, calls=%begin
  %fusion.2 = bf16[128,64]{0,1} fusion(%b), kind=kCustom, calls=%end
}

%condition (tuple: (s32[], bf16[16,64])) -> pred[] {
  %constant.1 = s32[]{:T(128)} constant(4)
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %while.1 = (s32[], bf16[16,64]) while(%tuple), condition=%condition, body=%body
  %all-reduce.1 = f32[8]{0} all-reduce(%x), channel_id=9, to_apply=%add
}
"""


def test_a_collective_that_several_computations_name_is_one_and_runs_as_often_as_its_loop():
    found = collectives(TPU)
    assert found == [Collective("all-gather", ((128, 64),), 128 * 64 * 2, 4), Collective("all-reduce", ((8,),), 32, 1)]
    assert bytes_by_kind(found)["all-gather"] == 4 * 128 * 64 * 2


def test_a_loop_whose_condition_says_nothing_counts_once():
    found = collectives(TPU.replace("constant(4)", "constant(4)\n  %constant.2 = s32[]{:T(128)} constant(9)"))
    assert [one.times for one in found] == [1, 1]


# Lines of a training step for A100s: a gather of several arrays at once, a scatter, and kernels within loops and calls.
GPU = """
%fused (param_0: f32[8]) -> f32[8] {
  ROOT %multiply.1 = f32[8]{0} multiply(%param_0, %param_0)
}

%wrapped (p: bf16[4,48]) -> bf16[4,48] {
  ROOT %all-to-all.1 = bf16[4,48]{1,0} all-to-all(%p), channel_id=5, replica_groups=[1,4]<=[4], dimensions={0}
}

%body (tuple: (s32[], bf16[220,7040])) -> (s32[], bf16[220,7040]) {
  %all-gather-start.1 = ((bf16[220,7040]{1,0}, f32[220]{0}), (bf16[1760,7040]{1,0}, /*index=5*/f32[1760]{0})) all-gather-start(%a, %b), channel_id=6, replica_groups=mesh['axis_0'=8,'axis_1'=1] {'axis_0'}, dimensions={0}
  %loop_fusion.1 = f32[8]{0} fusion(%c), kind=kLoop, calls=%fused
  %fft.1 = c64[1,881,513]{2,1,0} fft(%loop_fusion.1), fft_type=RFFT, fft_length={1024}
  %all-gather-done.1 = (bf16[1760,7040]{1,0}, f32[1760]{0}) all-gather-done(%all-gather-start.1)
  %custom-call.1 = (f32[8,512]{1,0}, s8[4194304]{0}) custom-call(%d, %e), custom_call_target="__cublas$lt$matmul"
}

%condition (tuple: (s32[], bf16[220,7040])) -> pred[] {
  %constant.2 = s32[] constant(16)
}

%command_buffer (p.1: f32[8]) -> f32[8] {
  %wrapped_add = f32[8]{0} fusion(%p.1), kind=kLoop, calls=%fused
  ROOT %copy.1 = f32[8]{0} copy(%wrapped_add)
}

ENTRY %main_spmd (x: f32[512,512]) -> f32[64,512] {
  %x = f32[512,512]{1,0} parameter(0), sharding={replicated}
  %while.1 = (s32[], bf16[220,7040]{1,0}) while(%tuple.1), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"16"},"known_init_step":{"init":"0","step":"1"}}
  %call.1 = f32[8]{0} call(%y), to_apply=%command_buffer
  %all-to-all-start.1 = ((bf16[4,48]{1,0}), bf16[4,48]{1,0}) async-start(%q), calls=%wrapped
  %all-to-all-done.1 = bf16[4,48]{1,0} async-done(%all-to-all-start.1)
  %reduce-scatter-start = ((f32[512,512]{1,0}), f32[64,512]{1,0}) reduce-scatter-start(%x), channel_id=3, dimensions={0}, to_apply=%add
  %reduce-scatter-done = f32[64,512]{1,0} reduce-scatter-done(%reduce-scatter-start)
  %all-reduce-start = (f32[9]{0}, f32[4]{0}) all-reduce-start(%v, %w), channel_id=9, to_apply=%add
  ROOT %get-tuple-element.1 = f32[8]{0} get-tuple-element(%while.1), index=1
}
"""  # noqa: E501


def test_a_program_for_gpus_is_read_by_what_each_device_receives():
    assert collectives(GPU) == [
        Collective("all-gather", ((1760, 7040), (1760,)), 1760 * 7040 * 2 + 1760 * 4, 16),
        Collective("all-to-all", ((4, 48),), 4 * 48 * 2, 1),
        Collective("reduce-scatter", ((64, 512),), 64 * 512 * 4, 1),
        Collective("all-reduce", ((9,), (4,)), 13 * 4, 1),
    ]


def test_kernels_count_as_often_as_they_run_and_fusions_once():
    assert runs(GPU) == {
        "all-gather-start": 16,
        "fft": 16,
        "custom-call": 16,
        "fusion": 16 + 1,
        "copy": 1,
        "all-to-all": 1,
        "reduce-scatter-start": 1,
        "all-reduce-start": 1,
    }


def test_transfers_are_exposed_unless_a_product_hides_them():
    bare = GPU.replace("  %fft.1", "  %all-gather-done.1 = bf16[1]{0} all-gather-done(%all-gather-start.1)\n  %fft.1")
    scattered = {**dict.fromkeys(KINDS, 0), "reduce-scatter": 64 * 512 * 4, "all-to-all": 4 * 48 * 2}
    assert exposed_by_kind(GPU) == scattered  # the transform hides the gather
    assert exposed_by_kind(bare) == {**scattered, "all-gather": 16 * (1760 * 7040 * 2 + 1760 * 4)}
