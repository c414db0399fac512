"""Score pairs of texts in this process, with the interface of sentence-transformers' `CrossEncoder`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from crossrank.cross_encoder.activations import ActivationFunction, activation_from
from crossrank.cross_encoder.calls import CallOptions, prediction, ranking
from crossrank.cross_encoder.facts import OpenedModel
from crossrank.cross_encoder.handle import ModelHandle
from crossrank.cross_encoder.inputs import Group, as_documents, check_text
from crossrank.cross_encoder.model_card import ModelCardData
from crossrank.cross_encoder.old_names import accepts_old_names
from crossrank.cross_encoder.opening import Opening, checked_name, engine_and_device, refuse_options
from crossrank.cross_encoder.progress import progress
from crossrank.cross_encoder.results import Scored, check_batch_size
from crossrank.engines.names import PRECISIONS
from crossrank.request import Truncation
from crossrank.scheduling.own_thread import in_thread_of_its_own

Result = TypeVar("Result")
# One pair (query, document), or pairs.
Pairs = Sequence[str] | Iterable[Sequence[str]]

# Arguments of `rank` in version 5: here it always returns plain floats, of one label.
_WITHOUT_EFFECT_IN_RANK = ("num_workers", "apply_softmax", "convert_to_numpy", "convert_to_tensor")
# Methods of sentence-transformers' class that are missing here, and what to do instead.
_ELSEWHERE = {
    **dict.fromkeys(
        ("fit", "old_fit", "train", "save", "save_pretrained", "save_to_hub", "push_to_hub"),
        "this library does not train: train and save with sentence-transformers, and open the saved directory here",
    ),
    **dict.fromkeys(
        ("start_multi_process_pool", "stop_multi_process_pool"),
        "one CrossEncoder uses all cores: choose their number with threads",
    ),
}


class CrossEncoder(OpenedModel):
    """Score how well documents answer a query, with a cross-encoder that runs in this process, without PyTorch.

    For scoring, the class replaces `sentence_transformers.CrossEncoder` (version 6, and version 5 with its names of
    arguments). Threads may share one encoder: their calls are scored together, in full batches, with the same scores as
    alone. An encoder can be pickled and used in a forked process: it opens its model again on first use there.

    Args:
        model_name_or_path: `builtin`, a directory (a bundle, or one written by `save_pretrained`), an ONNX file in such
            a directory, or a hub id with an optional `@revision`.
        modules: Not supported.
        device: `cpu`, `cuda` (the first GPU, with engine `cuda` unless `engine` says `tensorrt`), or None for the
            fastest engine of this machine.
        prompts: Texts by name, each put before queries that are scored under that name.
        default_prompt_name: Name of the prompt for calls that name none.
        cache_folder: Directory of converted models; None is the default cache.
        trust_remote_code: Not supported.
        revision: Commit, branch or tag on the hub.
        local_files_only: Use no network.
        token: Access token for private repositories on the hub; None and True use huggingface_hub's own, False none.
        model_kwargs: Options of transformers. Only those that change no score are accepted; they have no effect.
        processor_kwargs: As `model_kwargs`.
        config_kwargs: As `model_kwargs`.
        model_card_data: No effect.
        backend: `torch` is the fastest engine, whichever that is; `onnx` is engine `onnxruntime`, `openvino` is
            engine `openvino`.
        num_labels: None or 1, as a score is one number.
        max_length: Maximum tokens of a pair, special tokens included; None is the model's window. Longer pairs lose
            tokens of the longer text first.
        activation_fn: Function from logits to scores: a name (`identity`, `sigmoid`, `tanh`, ...), a torch module, or a
            function that takes a float32 array [pairs, 1]. None is the one that the model's configuration names, else
            the sigmoid.
        keep_in_fp32_modules: Not supported.
        engine: `auto`, `native`, `openvino`, `onnxruntime`, `cuda` or `tensorrt`; takes precedence over `backend`.
        precision: `auto`, `fp32`, `bf16`, `fp16` or `int8`; `auto` is bf16 where the CPU multiplies it natively.
        threads: Number of concurrent inferences; None is one per core.
        label: Index of the logit that is the score, counted from 0, where the model gives several.

    Raises:
        ValueError: An argument is not supported or out of its range.
        ModelSourceError: The model cannot be found, fetched or trusted.
        BundleError: The model's files do not fit each other, or cannot be converted.
        SetupError: No engine of this machine can serve the model as asked.
    """

    @accepts_old_names(
        model_name="model_name_or_path",
        automodel_args="model_kwargs",
        tokenizer_args="processor_kwargs",
        tokenizer_kwargs="processor_kwargs",
        config_args="config_kwargs",
        cache_dir="cache_folder",
        default_activation_function="activation_fn",
    )
    def __init__(
        self,
        model_name_or_path: str | os.PathLike[str],
        *,
        modules: None = None,
        device: Any = None,
        prompts: Mapping[str, str] | None = None,
        default_prompt_name: str | None = None,
        cache_folder: str | os.PathLike[str] | None = None,
        trust_remote_code: bool = False,
        revision: str | None = None,
        local_files_only: bool = False,
        token: bool | str | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
        processor_kwargs: Mapping[str, Any] | None = None,
        config_kwargs: Mapping[str, Any] | None = None,
        model_card_data: Any = None,
        backend: str = "torch",
        num_labels: int | None = None,
        max_length: int | None = None,
        activation_fn: str | ActivationFunction | None = None,
        keep_in_fp32_modules: None = None,
        engine: str = "auto",
        precision: str = "auto",
        threads: int | None = None,
        label: int | None = None,
    ) -> None:
        refuse_options(
            threads=threads,
            modules=modules,
            trust_remote_code=trust_remote_code,
            num_labels=num_labels,
            keep_in_fp32_modules=keep_in_fp32_modules,
            options={
                "model_kwargs": model_kwargs,
                "processor_kwargs": processor_kwargs,
                "config_kwargs": config_kwargs,
            },
        )
        chosen_engine, chosen_device = engine_and_device(engine, device, backend)
        opening = Opening(
            os.fspath(model_name_or_path),
            cache_folder=None if cache_folder is None else os.fspath(cache_folder),
            revision=revision,
            offline=local_files_only,
            token=token,
            label=label,
            engine=chosen_engine,
            precision=checked_name("precision", precision, PRECISIONS),
            threads=threads,
            device=chosen_device,
        )
        self.prompts = dict(prompts or {})
        self.default_prompt_name = default_prompt_name
        self.model_card_data = ModelCardData()
        activation = None if activation_fn is None else activation_from(activation_fn)
        super().__init__(ModelHandle(opening), activation, max_length)

    @accepts_old_names(sentences="inputs", activation_fct="activation_fn", without_effect=("num_workers",))
    def predict(
        self,
        inputs: Pairs,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        activation_fn: str | ActivationFunction | None = None,
        apply_softmax: bool | None = False,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: Any = None,
        pool: None = None,
        chunk_size: int | None = None,
        *,
        return_details: bool = False,
    ) -> Any:
        """Return the score of each pair.

        Args:
            inputs: One pair (query, document), or an iterable of pairs. Consecutive pairs with the same query tokenize
                it once.
            prompt_name: Name of the prompt, one of `prompts`, to put before each query; None is the default prompt.
            prompt: Text to put before each query; takes precedence over `prompt_name`.
            batch_size: Checked, but without effect: batches hold pairs of all callers, in the size that suits the
                engine.
            show_progress_bar: Show a progress bar.
            activation_fn: Used in place of the encoder's activation.
            apply_softmax: No effect, as there is one label.
            convert_to_numpy: False returns a list with one tensor for each pair; where PyTorch is not installed, with
                NumPy's float32 in place of tensors.
            convert_to_tensor: Return one tensor, which needs PyTorch; takes precedence over `convert_to_numpy`.
            device: No effect if it is the encoder's own; others are refused.
            pool: Not supported.
            chunk_size: No effect.
            return_details: Return a `Prediction`: scores, truncation and token counts.

        Returns:
            Scores, float32 [pairs]; one number for a single pair. For no pairs the array is empty and of float64, as in
            sentence-transformers.

        Raises:
            InvalidInput: A pair is not two texts; the message names the pair. It is a ValueError.
            ValueError: An argument is not supported or out of its range.
            EngineFailure: The engine broke, or a score is not a finite number.
            RuntimeError: The encoder is closed.
        """
        options = self._options(prompt_name, prompt, batch_size, activation_fn, device, pool)
        prepare, finish = prediction(inputs, options, convert_to_numpy, convert_to_tensor, return_details)
        return self._run(prepare, finish, show_progress_bar)

    @accepts_old_names(sentences="inputs", activation_fct="activation_fn", without_effect=("num_workers",))
    async def apredict(
        self,
        inputs: Pairs,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        activation_fn: str | ActivationFunction | None = None,
        apply_softmax: bool | None = False,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: Any = None,
        pool: None = None,
        chunk_size: int | None = None,
        *,
        return_details: bool = False,
    ) -> Any:
        """Return what `predict` returns, without blocking the event loop. Cancelling drops pairs not scored yet.

        Other threads check, tokenize and score the texts and call `activation_fn`. They also open the model, if it is
        not open in this process yet. No progress is shown.

        Args:
            inputs: See `predict`; an iterator is consumed in the thread of the event loop.
            prompt_name: See `predict`.
            prompt: See `predict`.
            batch_size: See `predict`.
            show_progress_bar: No effect.
            activation_fn: See `predict`.
            apply_softmax: See `predict`.
            convert_to_numpy: See `predict`.
            convert_to_tensor: See `predict`.
            device: See `predict`.
            pool: See `predict`.
            chunk_size: See `predict`.
            return_details: See `predict`.

        Returns:
            See `predict`.

        Raises:
            Exception: Those of `predict`.
        """
        await self.aopen()
        options = self._options(prompt_name, prompt, batch_size, activation_fn, device, pool)
        prepare, finish = prediction(inputs, options, convert_to_numpy, convert_to_tensor, return_details)
        return await self._start(prepare, finish, options)

    @accepts_old_names(activation_fct="activation_fn", without_effect=_WITHOUT_EFFECT_IN_RANK)
    def rank(
        self,
        query: str,
        documents: Iterable[str],
        top_k: int | None = None,
        return_documents: bool = False,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        activation_fn: str | ActivationFunction | None = None,
        device: Any = None,
        pool: None = None,
        chunk_size: int | None = None,
        *,
        return_details: bool = False,
    ) -> list[dict[str, Any]]:
        """Return documents by descending score; equal scores keep the order of the documents.

        Args:
            query: Text of the query.
            documents: Texts to rank.
            top_k: Maximum number of results; None returns all.
            return_documents: Add each document's text as `text`.
            prompt_name: See `predict`.
            prompt: See `predict`.
            batch_size: See `predict`.
            show_progress_bar: See `predict`.
            activation_fn: See `predict`.
            device: See `predict`.
            pool: See `predict`.
            chunk_size: See `predict`.
            return_details: Add `truncated` (bool) and `tokens` (int) to each result, as defined by `Prediction`.

        Returns:
            Dictionaries with `corpus_id` (int, the document's index), `score` (float) and the requested additions.

        Raises:
            InvalidInput: The query or a document is not a text; the message names it. It is a ValueError.
            ValueError: An argument is not supported or out of its range.
            TypeError: `documents` or `top_k` is of the wrong type.
            EngineFailure: The engine broke, or a score is not a finite number.
            RuntimeError: The encoder is closed.
        """
        options = self._options(prompt_name, prompt, batch_size, activation_fn, device, pool)
        prepare, finish = ranking([query], [documents], options, top_k, return_documents, return_details)
        return self._run(prepare, finish, show_progress_bar)[0]

    @accepts_old_names(activation_fct="activation_fn", without_effect=_WITHOUT_EFFECT_IN_RANK)
    async def arank(
        self,
        query: str,
        documents: Iterable[str],
        top_k: int | None = None,
        return_documents: bool = False,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        activation_fn: str | ActivationFunction | None = None,
        device: Any = None,
        pool: None = None,
        chunk_size: int | None = None,
        *,
        return_details: bool = False,
    ) -> list[dict[str, Any]]:
        """Return what `rank` returns, without blocking the event loop. Cancelling drops pairs not scored yet.

        Args:
            query: See `rank`.
            documents: See `rank`; an iterator is consumed in the thread of the event loop.
            top_k: See `rank`.
            return_documents: See `rank`.
            prompt_name: See `predict`.
            prompt: See `predict`.
            batch_size: See `predict`.
            show_progress_bar: No effect.
            activation_fn: See `predict`; it is called in another thread.
            device: See `predict`.
            pool: See `predict`.
            chunk_size: See `predict`.
            return_details: See `rank`.

        Returns:
            See `rank`.

        Raises:
            Exception: Those of `rank`.
        """
        await self.aopen()
        options = self._options(prompt_name, prompt, batch_size, activation_fn, device, pool)
        prepare, finish = ranking([query], [documents], options, top_k, return_documents, return_details)
        return (await self._start(prepare, finish, options))[0]

    def rank_many(
        self,
        queries: Iterable[str],
        documents: Iterable[Iterable[str]],
        top_k: int | None = None,
        return_documents: bool = False,
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        show_progress_bar: bool | None = None,
        activation_fn: str | ActivationFunction | None = None,
        return_details: bool = False,
    ) -> list[list[dict[str, Any]]]:
        """Rank the documents of several queries, each as `rank` does, and score all pairs together.

        Args:
            queries: Texts of the queries.
            documents: For each query, its own documents.
            top_k: Maximum number of results for each query; None returns all.
            return_documents: See `rank`.
            prompt_name: See `predict`.
            prompt: See `predict`.
            show_progress_bar: See `predict`.
            activation_fn: See `predict`; it is called once, with the logits of all queries.
            return_details: See `rank`.

        Returns:
            For each query, what `rank` returns.

        Raises:
            ValueError: The numbers of queries and of lists of documents differ.
            Exception: Those of `rank`.
        """
        options = self._options(prompt_name, prompt, 1, activation_fn, None, None)
        prepare, finish = ranking(
            as_documents(queries, "queries"),
            as_documents(documents),
            options,
            top_k,
            return_documents,
            return_details,
        )
        return self._run(prepare, finish, show_progress_bar)

    def __getattr__(self, name: str) -> Any:
        remedy = _ELSEWHERE.get(name)
        raise AttributeError(f"CrossEncoder has no {name}" + (f": {remedy}" if remedy else ""), name=name, obj=self)

    def __repr__(self) -> str:
        return f"CrossEncoder({self._handle.opening.model!r})"

    def _run(
        self, prepare: Callable[[], list[Group]], finish: Callable[[Scored], Result], show_progress_bar: bool | None
    ) -> Result:
        groups = prepare()
        with progress(sum(len(documents) for _, documents in groups), show_progress_bar) as advance:
            scored = self._handle.model().score(groups, Truncation(max_tokens=self._max_length), advance)
        return finish(scored)

    async def _start(
        self, prepare: Callable[[], list[Group]], finish: Callable[[Scored], Result], options: CallOptions
    ) -> Result:
        model, truncation = self._handle.model(), Truncation(max_tokens=self._max_length)
        if not options.activation.is_callers_own:
            return await asyncio.wrap_future(model.start(prepare, truncation, finish))
        # A caller's function holds no worker that tokenizes for others, and may call this encoder, or close it.
        scored = await asyncio.wrap_future(model.start(prepare, truncation, lambda scored: scored))
        return await asyncio.wrap_future(in_thread_of_its_own(finish, scored))

    def _options(
        self, prompt_name: Any, prompt: Any, batch_size: Any, activation_fn: Any, device: Any, pool: Any
    ) -> CallOptions:
        """Check the options that all calls share, and return those that have an effect.

        Raises:
            ValueError: An option is not supported or out of its range.
            TypeError: An option is of the wrong type.
        """
        if isinstance(prompt_name, int):  # the second argument of version 5
            batch_size, prompt_name = prompt_name, None
        check_batch_size(batch_size)
        if pool is not None:
            raise ValueError("pool is not supported: one CrossEncoder uses all cores, choose their number with threads")
        if device is not None and str(device).partition(":")[0] != self.device:
            raise ValueError(f"device {device} is not that of this encoder, {self.device}: choose it when opening")
        if prompt is None:
            prompt_name = self.default_prompt_name if prompt_name is None else prompt_name
            if prompt_name is not None and prompt_name not in self.prompts:
                raise ValueError(f"prompt_name {prompt_name!r} is none of prompts, {list(self.prompts)}")
            prompt = "" if prompt_name is None else self.prompts[prompt_name]
        check_text(prompt, "prompt")
        return CallOptions(prompt, self.activation_fn if activation_fn is None else activation_from(activation_fn))
