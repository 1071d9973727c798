"""Collectives of a compiled program, parsed from the text of a TPU program, which uses its own names."""

from motionaura_jax.parallel.collectives import Collective, bytes_by_kind, collectives

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
