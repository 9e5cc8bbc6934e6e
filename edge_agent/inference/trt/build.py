"""Builds a TensorRT plan from a network and a precision."""

from dataclasses import dataclass
from typing import Any, List, Optional, Tuple

from edge_agent.errors import EdgeAgentError, EngineError, ModelError
from edge_agent.inference.trt.api import Logger, TensorRT, create, reads_uff
from edge_agent.inference.trt.network import Network
from edge_agent.inference.trt.worker import make_calibrator
from edge_agent.models.calibration_cache import CALIBRATORS, Calibration, fitted


@dataclass(frozen=True)
class BuildParams:
    """What a plan is built for.

    Attributes:
        precision: "int8", "fp16" or "fp32"; the file's own where TensorRT is strongly typed.
        calibration: For INT8 of a float file.
        workspace_bytes: Scratch memory that layers may use; too little excludes fast ones.
        dla_core: Deep learning accelerator to use, or None for the GPU.
        fixed: True where TensorRT is strongly typed, hence has no flags for the precision.
    """

    precision: str
    calibration: Optional[Calibration]
    workspace_bytes: int
    dla_core: Optional[int]
    fixed: bool


def build(trt: TensorRT, logger: Logger, network: Network, params: BuildParams) -> bytes:
    """The plan; takes minutes, during which other threads run. Call it inside the CUDA context.

    Raises:
        ModelError: TensorRT cannot read or build the network, or the calibration is of another network.
        EngineError: There is not enough memory, or TensorRT does not start.
    """
    builder = create(trt.Builder, logger)
    config = builder.create_builder_config()
    definition, _parser = _definition(trt, builder, network, logger)
    _set_workspace(trt, config, params.workspace_bytes)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # else the inspector does not report precisions
    profile = None
    if min(tuple(definition.get_input(0).shape)) < 0:
        profile = builder.create_optimization_profile()
        profile.set_shape(network.binding.input, *network.shapes)
        config.add_optimization_profile(profile)
    # Python owns the calibrator, which must outlive the build.
    _calibrator = _set_precision(trt, config, definition, network, params, profile)
    if params.dla_core is not None:
        _set_dla(trt, builder, config, params, dynamic=profile is not None)
    logger.clear()
    plan = builder.build_serialized_network(definition, config)
    if plan is None:
        raise build_error(trt.__version__, network.name, logger.reason())
    return bytes(plan)


def _definition(trt: TensorRT, builder: Any, network: Network, logger: Logger) -> Tuple[Any, Any]:
    """The parsed network, and the parser, which owns the weights."""
    if network.uff is not None and reads_uff(trt):
        # The UFF parser supports only networks with implicit batch, hence no flags.
        definition = builder.create_network()
        parser = trt.UffParser()
        registered = parser.register_input(network.binding.input, network.shapes[0][1:])
        for output in network.binding.outputs.values():
            registered = parser.register_output(output) and registered
        if not (registered and parser.parse_buffer(network.uff, definition)):
            raise ModelError(f"model {network.name}: TensorRT's UFF parser cannot read it: {logger.reason()}")
        return definition, parser
    flags = trt.NetworkDefinitionCreationFlag
    explicit = 1 << int(flags.EXPLICIT_BATCH) if hasattr(flags, "EXPLICIT_BATCH") else 0
    definition = builder.create_network(explicit)
    parser = trt.OnnxParser(definition, logger)
    if not parser.parse(network.onnx):
        errors = [parser.get_error(index).desc() for index in range(parser.num_errors)]
        reason = errors[0] if errors else logger.reason()
        raise ModelError(
            f"model {network.name}: TensorRT {trt.__version__} cannot read it: {reason}",
            "export it with an older ONNX opset, or run it with backend onnxruntime",
        )
    return definition, parser


def _set_workspace(trt: TensorRT, config: Any, nbytes: int) -> None:
    if hasattr(config, "set_memory_pool_limit"):
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, nbytes)
    else:
        config.max_workspace_size = nbytes


def _set_precision(
    trt: TensorRT, config: Any, definition: Any, network: Network, params: BuildParams, profile: Optional[Any]
) -> Optional[Any]:
    """Set the flags, which only permit a precision; the INT8 calibrator, if any."""
    flags = trt.BuilderFlag
    if params.precision == "fp32":
        config.clear_flag(flags.TF32)
    if params.precision == "fp32" or params.fixed:
        return None
    config.set_flag(flags.FP16)
    if params.precision != "int8":
        return None
    config.set_flag(flags.INT8)
    if params.calibration is None:  # a quantised file contains its scales
        return None
    white = 255.0 * network.contract.gain
    cache = fitted(params.calibration, _tensor_names(definition), network.binding.input, white, trt.__version__)
    calibrator = make_calibrator(getattr(trt, CALIBRATORS[params.calibration.algorithm]), cache)
    config.int8_calibrator = calibrator
    if profile is not None:
        config.set_calibration_profile(profile)
    return calibrator


def _tensor_names(definition: Any) -> List[str]:
    layers = [definition.get_layer(index) for index in range(definition.num_layers)]
    outputs = [layer.get_output(index).name for layer in layers for index in range(layer.num_outputs)]
    return [definition.get_input(0).name, *outputs]


def _set_dla(trt: TensorRT, builder: Any, config: Any, params: BuildParams, dynamic: bool) -> None:
    cores = builder.num_DLA_cores
    if not 0 <= int(params.dla_core or 0) < cores:
        raise ModelError(
            f"DLA core {params.dla_core} was asked for, but there are {cores}",
            f"leave dla_core unset{f', or choose 0 to {cores - 1}' if cores else ': this device or TensorRT has none'}",
        )
    if dynamic or params.precision == "fp32":
        supported = "models of one input size" if dynamic else "int8 and fp16"
        raise ModelError(
            f"DLA core {params.dla_core} was asked for, but it runs {supported} only", "leave dla_core unset"
        )
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = params.dla_core
    config.set_flag(trt.BuilderFlag.GPU_FALLBACK)


def build_error(version: str, name: str, reason: str) -> EdgeAgentError:
    """The error for a build of model `name` that TensorRT `version` refused with `reason`."""
    message = f"TensorRT {version} cannot build model {name}: {reason}"
    if "memory" in reason.lower() or "workspace" in reason.lower():
        return EngineError(message, "stop other programs on the GPU, or lower workspace_mb")
    return ModelError(message, "run it with backend onnxruntime, or ask for another precision")
