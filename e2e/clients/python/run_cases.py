"""The behaviours in e2e/cases.json through Python's grpcio.

    run_cases.py HOST:PORT STUBS RUN

STUBS is the folder with the modules that grpcio-tools made from the .proto files, RUN a word that
makes this run's keys its own. e2e/README.md explains the notation of the cases; e2e/src/cases.rs
interprets the same file in Rust. Exit code: 0 all passed, 1 some did not.
"""

import base64
import json
import pathlib
import sys
import time

import grpc
from google.protobuf import json_format
from google.rpc import error_details_pb2
from grpc_status import rpc_status

NAME = "python"
DOMAIN = "stateside.dev"
ANSWER_BYTES_MAX = 64 << 20
OVERLOADED_RETRIES = 500
PATIENCE_S = 10


class Wrong(Exception):
    """The node did not do what the case says."""


class Runner:
    def __init__(self, channel, methods, run):
        self.channel = channel
        self.methods = methods
        self.run = run
        self.variables = {}

    def step(self, step):
        if NAME in step.get("except", {}):
            return
        if step.get("untilExpected"):
            return self.step_until_expected(step)
        until_error = step.get("untilError", False)
        error = step.get("error")
        for i in range(step.get("repeat", 1)):
            try:
                answer = self.call_patiently(step, self.expand(step["request"], i))
            except grpc.RpcError as failure:
                if error is None:
                    raise Wrong(f"failed: {failure.code().name} {failure.details()}") from failure
                check_failure(error, failure)
                return
            if error is None:
                self.check(step["expect"], answer, "answer", i)
            elif not until_error:
                raise Wrong(f"succeeded, expected {error}")
        if until_error:
            raise Wrong("no call failed")

    def step_until_expected(self, step):
        deadline = time.monotonic() + PATIENCE_S
        while True:
            answer = self.call_patiently(step, self.expand(step["request"], 0))
            try:
                return self.check(step["expect"], answer, "answer", 0)
            except Wrong:
                if time.monotonic() > deadline:
                    raise

    def call_patiently(self, step, request):
        """Sends what was refused as OVERLOADED again, after the delay that the node asks for."""
        for _ in range(OVERLOADED_RETRIES):
            try:
                return self.call(step, request)
            except grpc.RpcError as failure:
                info, delay = details_of(failure)
                if info.reason != "OVERLOADED":
                    raise
                time.sleep(delay)
        return self.call(step, request)

    def call(self, step, request):
        method = step["call"] if "." in step["call"] else "stateside.v1." + step["call"]
        service, name = method.split("/")
        # A method that no file defines is called with some message that encodes to nothing.
        request_type, answer_type = self.methods.get(method) or self.methods["stateside.v1.Undefined/Call"]
        call = self.channel.unary_unary(
            f"/{service}/{name}",
            request_serializer=request_type.SerializeToString,
            response_deserializer=answer_type.FromString,
        )
        deadline = step.get("deadlineMs")
        answer = call(
            json_format.ParseDict(request, request_type()),
            # gRPC takes 0 for "almost at once"; a deadline that has passed is negative.
            timeout=None if deadline is None else (deadline / 1000 or -1),
            compression=grpc.Compression.Gzip if step.get("compress") else None,
        )
        return json_format.MessageToDict(answer)

    def expand(self, value, i):
        if isinstance(value, list):
            return [self.expand(item, i) for item in value]
        if not isinstance(value, dict):
            return value
        as_bytes = self.bytes(value, i)
        if as_bytes is not None:
            return as_bytes
        if "$value" in value:
            return str(self.variables[value["$value"]])
        if "$each" in value:
            return [self.expand(value["of"], i) for i in range(value["$each"])]
        return {name: self.expand(item, i) for name, item in value.items()}

    def bytes(self, value, i):
        if "$text" in value:
            raw = value["$text"].replace("{run}", self.run).replace("{i}", str(i)).encode()
        elif "$hex" in value:
            raw = bytes.fromhex(value["$hex"])
        elif "$fill" in value:
            raw = value["$fill"].encode() * value["bytes"]
        else:
            return None
        return base64.b64encode(raw).decode()

    def check(self, expected, actual, path, i):
        if isinstance(expected, list):
            actual = actual or []
            if len(actual) != len(expected):
                raise Wrong(f"{path} has {len(actual)} elements, expected {len(expected)}")
            for at, (item, other) in enumerate(zip(expected, actual)):
                self.check(item, other, f"{path}[{at}]", i)
        elif isinstance(expected, dict):
            as_bytes = self.bytes(expected, i)
            if as_bytes is not None:
                if (actual or "") != as_bytes:
                    raise Wrong(f"{path} is {str(actual)[:200]}, expected {expected}")
            elif any(name in expected for name in ("$length", "$first", "$last", "$all")):
                self.check_list(expected, actual or [], path, i)
            elif any(name.startswith("$") for name in expected):
                self.check_scalar(expected, actual, path)
            else:
                for name, item in expected.items():
                    self.check(item, (actual or {}).get(name), f"{path}.{name}", i)
        elif shown(expected) != shown(actual):
            raise Wrong(f"{path} is {str(actual)[:200]}, expected {expected}")

    def check_list(self, expected, actual, path, i):
        if "$length" in expected and len(actual) != expected["$length"]:
            raise Wrong(f"{path} has {len(actual)} elements, expected {expected['$length']}")
        if "$first" in expected:
            self.check(expected["$first"], actual[0], f"{path}[0]", i)
        if "$last" in expected:
            self.check(expected["$last"], actual[-1], f"{path}[last]", i)
        if "$all" in expected:
            for at, item in enumerate(actual):
                self.check(expected["$all"], item, f"{path}[{at}]", i)

    def check_scalar(self, expected, actual, path):
        if "$nonempty" in expected:
            if not actual:
                raise Wrong(f"{path} is empty")
            return
        number = int(actual or 0)
        for rule, argument in expected.items():
            other = self.variables.get(argument, 0) if isinstance(argument, str) else 0
            holds = {
                "$nonzero": number != 0,
                "$same": number == other,
                "$next": number == other + 1,
                "$above": number > other,
                "$save": True,
            }[rule]
            if not holds:
                raise Wrong(f"{path} is {number}, which is not {rule} {argument} of {other}")
        # After the comparisons: a step may compare with the value that it then replaces.
        if "$save" in expected:
            self.variables[expected["$save"]] = number


def shown(value):
    """A scalar's text; absent fields and defaults have none."""
    return "" if value in (None, False, 0, "", "0") else str(value)


def details_of(failure):
    """ErrorInfo, and the delay of RetryInfo in seconds."""
    info, delay = error_details_pb2.ErrorInfo(), 0
    status = rpc_status.from_call(failure)
    for detail in status.details if status else ():
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            detail.Unpack(info)
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry = error_details_pb2.RetryInfo()
            detail.Unpack(retry)
            delay = retry.retry_delay.ToTimedelta().total_seconds()
    return info, delay


def check_failure(expected, failure):
    wrong = []
    if expected.get("code", failure.code().name) != failure.code().name:
        wrong.append(f"code is {failure.code().name} ({failure.details()})")
    info, delay = details_of(failure)
    if "reason" in expected:
        if info.reason != expected["reason"]:
            wrong.append(f"reason is `{info.reason}` ({failure.details()})")
        if info.domain != DOMAIN:
            wrong.append(f"domain is `{info.domain}`")
        if not failure.details():
            wrong.append("there is no message")
    if "retry" in expected:
        if (delay > 0) != expected["retry"]:
            wrong.append(f"retry delay is {delay} s")
    if wrong:
        raise Wrong(f"{', '.join(wrong)}; expected {expected}")


def message_types():
    """Request and answer type of every method that the generated modules define."""
    from google.protobuf import message_factory
    from grpc.health.v1 import health_pb2
    from stateside.v1 import data_plane_pb2
    import undefined_pb2

    methods = {}
    for module in (data_plane_pb2, health_pb2, undefined_pb2):
        for service in module.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                methods[f"{service.full_name}/{method.name}"] = (
                    message_factory.GetMessageClass(method.input_type),
                    message_factory.GetMessageClass(method.output_type),
                )
    return methods


def use_stubs(folder):
    """Lets the generated `grpc.health.v1` lie beside the installed package `grpc`."""
    sys.path.insert(0, folder)
    grpc.__path__.append(str(pathlib.Path(folder) / "grpc"))


def main(address, stubs, run):
    use_stubs(stubs)
    cases = json.loads((pathlib.Path(__file__).parents[2] / "cases.json").read_text())["cases"]
    methods = message_types()
    failed = 0
    options = [("grpc.max_receive_message_length", ANSWER_BYTES_MAX)]
    with grpc.insecure_channel(address, options=options) as channel:
        for case in cases:
            runner = Runner(channel, methods, run)
            try:
                for index, step in enumerate(case["steps"]):
                    try:
                        runner.step(step)
                    except Wrong as wrong:
                        raise Wrong(f"step {index + 1} ({step['call']}): {wrong}") from wrong
                print(f"ok {case['name']}")
            except Wrong as wrong:
                failed += 1
                print(f"FAILED {case['name']}: {wrong}")
    print(f"{len(cases) - failed} of {len(cases)} cases passed")
    return 1 if failed else 0


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
