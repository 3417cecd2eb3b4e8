"""What is counted of a piece of work."""

import torch

from t2i_rl.speed.counting import Counts, counted, of_one_more

CPU = torch.device("cpu")


def test_views_and_slices_are_no_operations():
    x = torch.ones(4, 6)
    assert counted(lambda: x.view(24)[3:].unsqueeze(0).transpose(0, 1).detach(), CPU) == Counts()
    found = counted(lambda: x.T.contiguous(), CPU)
    assert found.operations == 1 and found.bytes == 2 * x.nbytes and found.looks == 0


def test_what_the_host_waits_for():
    x = torch.ones(3)
    assert counted(lambda: x.sum().item(), CPU).looks == 1
    assert counted(lambda: x.nonzero(), CPU).looks == 1
    assert counted(lambda: bool(x.any()), CPU).looks == 1
    assert counted(lambda: x.tolist(), CPU).looks == 0  # of the host's own memory


def test_one_more_leaves_out_what_all_have():
    def work(times: int) -> None:
        torch.ones(2).sum().item()
        for _ in range(times):
            torch.zeros(8).add_(1)

    found = of_one_more(work, 2, CPU)
    assert (found.operations, found.looks) == (2, 0)
