"""How often a loop of a compiled program turns."""

from jit_jax.hardware.hlo import Computation, Instruction, Program


def turns(program: Program, loop: Instruction) -> int:
    """Turns of a `while` instruction: what the compiler says, or what `counter < constant` means.

    The body adds 1 to the counter, or 2 where the compiler unrolled it. 1 where neither is found.
    """
    known = loop.attribute(r'"known_trip_count":\{"n":"(\d+)"')
    if known:
        return int(known)
    condition, body = condition_and_body(program, loop)
    limits = _constants(condition).values()
    return max(max(limits, default=1) // _step(condition, body), 1)


def condition_and_body(program: Program, loop: Instruction) -> tuple[Computation, Computation]:
    """The two computations of a `while` instruction."""
    names = [loop.attribute(rf'\b{part}=%?([\w.\-]+)') for part in ('condition', 'body')]
    condition, body = (program.computations[name] for name in names)
    return condition, body


def _constants(computation: Computation) -> dict[str, int]:
    """Whole numbers of a computation by the name of their instruction."""
    constants = (c for c in computation.values() if c.op == 'constant')
    return {c.name: int(c.arguments) for c in constants if c.arguments.strip().isdigit()}


def _step(condition: Computation, body: Computation) -> int:
    """What the body adds to the counter that the condition reads."""
    counters = [c.attribute(r'index=(\d+)') for c in condition.values() if _is_element(c)]
    known = _constants(body)
    added = []
    for instruction in body.values():
        if instruction.op != 'add':
            continue
        counter, amount = (body.get(name) for name in instruction.operands)
        if counter and _is_element(counter) and counter.attribute(r'index=(\d+)') in counters:
            added.append(known.get(amount.name, 1))
    return min(max(added, default=1), 2) or 1


def _is_element(instruction: Instruction) -> bool:
    return instruction.op == 'get-tuple-element'
