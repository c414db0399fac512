"""CrossEncoder in other processes: pickled, forked, and what importing it loads."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import pytest

from crossrank import CrossEncoder
from crossrank.native.library import usable_kernels

PAIRS = [("who wrote faust", "Goethe wrote Faust"), ("who wrote faust", "a cat sat on the mat")]
LONG = ("who wrote faust", "one two three four five")


def run(program: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


HEAVY = (
    *("torch", "transformers", "sentence_transformers", "fastapi", "starlette", "uvicorn", "sqlalchemy", "pydantic"),
    *("onnx", "onnxruntime", "openvino", "tokenizers", "huggingface_hub", "crossrank_server", "crossrank_client"),
    *("crossrank_export",),
)


def test_importing_costs_nothing_that_is_not_used_yet() -> None:
    program = f"""if True:
        import sys
        import crossrank
        assert "numpy" not in sys.modules
        from crossrank import CrossEncoder
        print([name for name in {HEAVY} if name in sys.modules])
        try:
            crossrank.Reranker
        except AttributeError as error:
            print(error)
    """
    assert run(program).splitlines() == ["[]", "module 'crossrank' has no attribute 'Reranker'"]


def test_scoring_loads_neither_torch_nor_the_server() -> None:
    program = f"""if True:
        import sys
        from crossrank import CrossEncoder
        with CrossEncoder("builtin") as encoder:
            assert encoder.predict(("a", "b")) < 1
            encoder.rank("a", ["b"] * 100)
            asked = {HEAVY[:7]} + ("crossrank_server", "crossrank_client", "crossrank_export")
            print([name for name in asked if name in sys.modules])
    """
    assert run(program) == "[]\n"


def test_no_thread_reports_to_the_maker_of_onnxruntime() -> None:
    # It also keeps a forked process from ending.
    program = "import crossrank, os, onnxruntime; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    assert run(program) == "1\n"


def score(encoder: CrossEncoder) -> tuple[list[float], float, int]:
    return encoder.predict(PAIRS).tolist(), float(encoder.predict(LONG)), encoder.max_length


def test_a_pickled_encoder_opens_its_model_in_the_other_process() -> None:
    with CrossEncoder("builtin", precision="fp32", max_length=6, activation_fn="identity", threads=1) as encoder:
        encoder.predict(PAIRS * 40)
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            assert pool.submit(score, encoder).result(120) == score(encoder)


def test_a_copy_is_an_encoder_of_its_own() -> None:
    encoder = CrossEncoder("builtin", precision="fp32", prompts={"q": "query: "}, activation_fn=np.tanh, threads=1)
    expected = encoder.predict(PAIRS)
    clone = pickle.loads(pickle.dumps(encoder))
    other = copy.deepcopy(encoder)
    encoder.close()
    for each in (clone, other):
        np.testing.assert_array_equal(each.predict(PAIRS), expected)
        assert each.prompts == {"q": "query: "}
        each.close()
    with pytest.raises(RuntimeError, match="is closed"):
        pickle.loads(pickle.dumps(encoder)).predict(PAIRS)


FORK = """if True:
    import os, sys, threading
    from crossrank import CrossEncoder

    (engine,) = sys.argv[1:]
    encoder = CrossEncoder("builtin", engine=engine, precision="fp32", threads=2)
    pairs = [("who wrote faust", "Goethe wrote Faust " * 20)] * 100
    single = ("who wrote faust", "Goethe wrote Faust")

    def scores():
        return encoder.predict(pairs).tolist(), float(encoder.predict(single))

    expected = scores()
    stop = threading.Event()
    busy = threading.Thread(target=lambda: [encoder.predict(pairs) for _ in iter(stop.is_set, True)])
    busy.start()
    child = os.fork()
    if child == 0:
        assert scores() == expected
        if engine == "native":
            encoder.close()
        print("scored", flush=True)
        sys.exit()
    stop.set()
    assert os.waitpid(child, 0)[1] == 0
    busy.join()
    assert scores() == expected
    encoder.close()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("engine", ["native", "onnxruntime", "openvino"])
def test_a_forked_process_opens_its_own_model_and_ends(engine: str) -> None:
    if engine == "native" and not usable_kernels():
        pytest.skip("the native encoder was not built: no C++ compiler")
    if engine == "openvino":
        pytest.importorskip("openvino")
    assert run(FORK, engine) == "scored\n"


def test_an_encoder_may_be_left_open_when_the_interpreter_ends() -> None:
    program = """if True:
        import asyncio
        from crossrank import CrossEncoder
        encoder = CrossEncoder("builtin")
        encoder.predict([("a", "b")] * 200)
        asyncio.run(encoder.apredict(("a", "b")))
        print("done")
    """
    assert run(program) == "done\n"


def test_a_lambda_travels_nowhere() -> None:
    encoder: Any = CrossEncoder("builtin", threads=1, activation_fn=lambda logits: logits)
    with pytest.raises((pickle.PicklingError, AttributeError)):
        pickle.dumps(encoder)
    encoder.close()


def test_a_function_of_the_caller_may_call_the_encoder_and_close_it() -> None:
    program = """if True:
        import asyncio, faulthandler
        from crossrank import CrossEncoder
        faulthandler.dump_traceback_later(20, exit=True)
        encoder = CrossEncoder("builtin", engine="onnxruntime", precision="fp32", threads=1)
        pairs = [("who wrote faust", f"document {i}") for i in range(100)]
        def nested(logits):
            return encoder.predict(pairs)[: len(logits)]
        def closing(logits):
            encoder.close()
            return logits
        async def main():
            results = await asyncio.gather(*(encoder.apredict(pairs[:3], activation_fn=nested) for _ in range(8)))
            return [len(result) for result in results], len(await encoder.apredict(pairs, activation_fn=closing))
        print(asyncio.run(main()))
        faulthandler.cancel_dump_traceback_later()
    """
    assert run(program) == "([3, 3, 3, 3, 3, 3, 3, 3], 100)\n"
