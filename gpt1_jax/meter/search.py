"""The fastest of some settings, each tried in turn."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from gpt1_jax.errors import UserError
from gpt1_jax.meter.memory import NoRoomError


def search(base: Mapping, axes: Mapping[str, Sequence], measure: Callable[[dict], dict]) -> Iterator[dict]:
    """Tries `base`, then the values of one key after the other, the other keys as in the fastest settings so far.

    Args:
      base: key -> value.
      axes: key -> values, in the order in which they are tried.
      measure: settings -> {'tokens_per_s': `timing.spread`, ...}. Raises NoRoomError or UserError for settings that
        do not fit the machine or the program; what else it raises ends the search.

    Yields for each of them {'settings'} with what `measure` returned, or with 'skipped', why there is nothing.
    """
    tried = []

    def attempt(settings):
        entry = {'settings': settings}
        try:
            entry |= measure(settings)
        except NoRoomError as error:
            entry['skipped'] = f'does not fit into the memory: {error}'
        except UserError as error:
            entry['skipped'] = str(error)
        tried.append(entry)
        return entry

    yield attempt(dict(base))
    for key, values in axes.items():
        around = (fastest(tried) or tried[0])['settings']
        for value in values:
            settings = around | {key: value}
            if all(settings != entry['settings'] for entry in tried):
                yield attempt(settings)


def fastest(tried: Sequence[dict], **wanted: object) -> dict | None:
    """The measured entry of `search` with the most tokens/s among those whose settings have the values `wanted`; None
    if there is none."""
    fit = [one for one in tried if 'skipped' not in one and wanted.items() <= one['settings'].items()]
    return max(fit, key=lambda one: one['tokens_per_s']['median'], default=None)


def overrides(settings: Mapping) -> list[str]:
    """Flags of a command line."""
    return [f'--config.{key}={value}' for key, value in settings.items()]


def advice(tried: Sequence[dict], batch_size: int) -> tuple[list[str] | None, list[str]]:
    """(overrides of the fastest settings, or None; what to say, in paragraphs). batch_size: of the first settings."""
    best = fastest(tried)
    if best is None:
        return None, ['Nothing that was tried fits. Choose a smaller size.']
    found = {'Fastest of what was tried': best}
    same = fastest(tried, **{'data.batch_size': batch_size}) if 'data.batch_size' in best['settings'] else best
    if same not in (None, best):
        found[f'Fastest with batches of {batch_size} (another size changes what a step learns)'] = same
    said = [
        f'{what}: {one["tokens_per_s"]["median"]:,.0f} tokens/s\n    {" ".join(overrides(one["settings"]))}'
        for what, one in found.items()
    ]
    return overrides(best['settings']), said
