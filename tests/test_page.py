"""The whole report: the same bytes for the same runs, no number from nowhere, gaps for what is not there; a browser."""

import json
import re
import shutil
import subprocess

import pytest
from etils import epath

import recorded
from gpt1_jax.data.labelled.registry import REGISTRY
from gpt1_jax.evaluation.paper import GLUE_AVERAGE, TABLE_5
from gpt1_jax.report import page
from gpt1_jax.report.blocks import Figure, Paper, Table

CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)


@pytest.fixture(scope='module')
def report(tmp_path_factory):
    """The folder of the report of `recorded.everything`."""
    out = epath.Path(tmp_path_factory.mktemp('report'))
    page.write(recorded.everything(), out)
    return out


@pytest.fixture
def small(tmp_path):
    """A model, a sweep of one set, the samples: few panels."""
    folder = epath.Path(tmp_path) / 'small'
    recorded.write_pretraining(folder / 'pretrain', 'tiny', recorded.MODEL, 6.0)
    recorded.write_sst2(folder / 'tuned', seeds=2)
    recorded.write_evaluation(folder / 'evaluation')
    return folder


def written(folder, out):
    page.write(folder, out)
    return (out / 'report.html').read_text(), (out / 'report.md').read_text()


def test_the_same_runs_give_the_same_bytes(small, tmp_path):
    first = written(small, tmp_path / 'first')
    moved = shutil.copytree(small, tmp_path / 'copy' / 'small')
    assert written(small, small / 'report') == first
    assert written(small, small / 'report') == first  # the report in the folder is not a part of it
    assert written(moved, tmp_path / 'second') == first


def test_all_sections_are_there_and_none_is_empty(report):
    sections = re.split(r'<h2 [^>]*>([^<]*)</h2>', (report / 'report.html').read_text())
    assert sections[1::2] == [
        'What was run',
        'Fine-tuning scores beside the paper',
        'Other evaluations',
        'Ablations (table 5)',
        'Layer transfer (figure 2, left)',
        'Zero-shot scores (figure 2, right)',
        'What the paper leaves open',
        'Pre-training',
        'Learning curves of fine-tuning',
        'Speed and cost',
        'Confusion matrices',
        'Examples that the model got wrong',
        'Samples',
    ]
    assert all(re.search(r'<td|<blockquote', section) for section in sections[2::2])
    headings = re.findall(r'^## (.*)$', (report / 'report.md').read_text(), flags=re.MULTILINE)
    assert headings == sections[1::2]


def test_hostile_text_is_only_text(report):
    html, markdown = ((report / name).read_text() for name in ('report.html', 'report.md'))
    assert '<script' not in html.lower() and html.count('&lt;script&gt;alert(') > 20
    outside = re.sub(r'^(`{3,})text\n.*?^\1$', '', markdown, flags=re.DOTALL | re.MULTILINE)
    assert '<script' not in outside and '<script' in markdown


def cells(blocks):
    """(text, whether it is the paper's) of every cell."""
    for block in blocks:
        table = block.numbers if isinstance(block, Figure) else block
        if isinstance(table, Table):
            for entry in table.entries:
                for cell in entry:
                    yield (
                        ('' if cell is None else cell if isinstance(cell, str) else cell.text),
                        isinstance(cell, Paper),
                    )


def numbers(text):
    return set(re.findall(r'(?<![\w.])\d[\d,]*(?:\.\d+)?', text))


def test_of_a_run_without_scores_no_number_but_its_own_and_the_papers(tmp_path):
    """The texts say how things are done (95 %, table 5); a number of a result stands in a table."""
    folder = epath.Path(tmp_path)
    recorded.write_sst2(folder / 'tuned', seeds=1)
    shutil.rmtree(folder / 'tuned/sst2')
    (folder / 'tuned/results.json').unlink()
    found = list(cells(page.sections(page.collect(folder))))
    own = set().union(*(numbers(text) for text, papers in found if not papers))
    assert own == {'0', '1'}  # of 0 of 1 runs
    published = {
        f'{value:.1f}' for dataset in REGISTRY.values() for pair in dataset.paper.values() for value in pair if value
    }
    published |= {f'{value:.1f}' for row in TABLE_5.values() for value in row.values()} | {'12', '768', '0.96', '8'}
    assert set().union(*(numbers(text) for text, papers in found if papers)) <= published | set(map(str, GLUE_AVERAGE))


def test_what_a_run_says_is_what_the_page_shows(small, tmp_path):
    path = small / 'tuned/sst2/seed0/results.json'
    stored = json.loads(path.read_text())
    del stored['sha256']  # as an earlier version wrote it
    before = written(small, tmp_path / 'before')
    for score in stored['scores']:
        if score['split'] == 'dev':
            score['value'] = 0.1234567
    path.write_text(json.dumps(stored))
    after = written(small, tmp_path / 'after')
    for old, new in zip(before, after):
        assert '12.3 to ' not in old and '12.3 to ' in new
    (small / 'tuned/sst2/seed1/results.json').unlink()
    (html, markdown) = written(small, tmp_path / 'less')
    assert '>12.3<' in html and 'tuned, sst2: 1 of 2 runs are finished.' in html
    assert '| 12.3 |  |' in markdown  # one run has no spread


def test_of_a_run_that_is_gone_no_number_is_left(small, tmp_path):
    before = written(small, tmp_path / 'before')
    assert '>76.5<' in before[0] and '| 76.5 |' in before[1] and 'Pre-training of a transformer' not in before[0]
    shutil.rmtree(small / 'evaluation')
    shutil.rmtree(small / 'pretrain')
    html, markdown = written(small, tmp_path / 'after')
    for text in (html, markdown):
        assert not re.search('[>| ]76[.]5[< ]', text) and '2,048,000' not in text and 'Other evaluations' not in text
        assert 'Pre-training of a transformer.' in text
    shutil.rmtree(small / 'tuned/sst2/seed1')
    html, _ = written(small, tmp_path / 'less')
    assert 'tuned, sst2: 1 of 2 runs are finished.' in html


def test_a_damaged_run_is_shown_as_damaged_and_the_others_reported(small, tmp_path):
    (small / 'evaluation/results.json').write_text('{"format_version": 1')
    (small / 'tuned/sst2/seed1/dev.npz').write_bytes(b'no archive')
    html, markdown = written(small, tmp_path / 'out')
    assert 'evaluation is damaged. results.json: The file is damaged' in html
    assert 'tuned/sst2/seed1 is damaged. dev.npz: The file is damaged' in html
    assert '>76.5<' not in html and '| evaluation | evaluate | damaged |' in markdown
    assert html.count('tuned, sst2, seed 0: dev examples by label') == 1


def test_the_runs_are_returned(small, tmp_path):
    states = {run.name: run.state for run in page.write(str(small), str(tmp_path / 'out'))}
    assert states == dict.fromkeys(
        ('evaluation', 'pretrain', 'tuned', 'tuned/sst2/seed0', 'tuned/sst2/seed1'), 'finished'
    )


# What a page tells of itself: how wide it is, what it fetched, and the least contrast of text with what is behind it.
PROBE = r"""<script>
addEventListener('load', () => {
  const channels = color => color.match(/[\d.]+/g).map(Number);
  const over = (top, below) => {
    const [r, g, b, a = 1] = top;
    return [r, g, b].map((x, i) => a * x + (1 - a) * below[i]);
  };
  const behind = element => element === null ? [255, 255, 255]
    : over(channels(getComputedStyle(element).backgroundColor), behind(element.parentElement));
  const luminance = color => color.slice(0, 3).map(x => x / 255)
    .map(x => x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4)
    .reduce((sum, x, i) => sum + x * [0.2126, 0.7152, 0.0722][i], 0);
  let least = 99, words = '';
  const kinds = 'h1,h2,h3,p,li a,th,td,caption,figcaption,summary,blockquote,text,b';
  for (const element of document.body.querySelectorAll(kinds)) {
    const style = getComputedStyle(element), back = behind(element);
    const front = over(channels(element.tagName === 'text' ? style.fill : style.color), back);
    const [a, b] = [luminance(front), luminance(back)].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < least) { least = (a + 0.05) / (b + 0.05); words = element.textContent.slice(0, 40); }
  }
  parent.postMessage(JSON.stringify({
    width: innerWidth, scroll: document.documentElement.scrollWidth, body: document.body.scrollWidth,
    fetched: performance.getEntriesByType('resource').length, least, words,
    dark: matchMedia('(prefers-color-scheme: dark)').matches,
    background: getComputedStyle(document.body).backgroundColor,
    figures: [...document.querySelectorAll('svg')].map(svg => Math.round(svg.getBoundingClientRect().width)),
    smallest: Math.min(...[...document.querySelectorAll('svg text')].map(t => t.getBoundingClientRect().height)),
  }), '*');
});
</script>"""
# A window is never as narrow as a phone, but a frame is.
FRAME = """<!DOCTYPE html><meta name="color-scheme" content="light dark"><title></title>
<script>addEventListener('message', event => { document.title = event.data; });</script>
<iframe style="border:0" src="probed.html" width="%d" height="900"></iframe>"""
''


def in_browser(folder, width, dark):
    """(what PROBE found in folder/probed.html, the console's messages)"""
    (folder / 'frame.html').write_text(FRAME % width)
    command = [
        *(CHROMIUM, '--headless', '--no-sandbox', '--disable-gpu', '--dump-dom', '--enable-logging=stderr'),
        *('--disable-background-networking', '--no-first-run', '--virtual-time-budget=5000'),
        *('--window-size=1400,900', f'--blink-settings=preferredColorScheme={0 if dark else 1}'),
        f'file://{folder}/frame.html',
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    found = re.search(r'<title>(.*?)</title>', done.stdout, re.DOTALL)
    return json.loads(found[1]), re.findall(r'.*CONSOLE.*', done.stderr)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason='there is no Chromium')
@pytest.mark.parametrize('width', [1280, 390])
@pytest.mark.parametrize('dark', [False, True])
def test_in_a_browser(report, tmp_path, width, dark):
    html = (report / 'report.html').read_text()
    policy = re.search(r'<meta http-equiv="Content-Security-Policy"[^>]*>', html)[0]
    assert html.count('</body>') == 1
    (tmp_path / 'probed.html').write_text(html.replace(policy, '').replace('</body>', f'{PROBE}</body>'))
    found, console = in_browser(tmp_path, width, dark)
    assert console == []
    assert found['width'] == width and found['scroll'] <= width and found['body'] <= width
    assert found['fetched'] == 0
    assert found['dark'] == dark and found['background'] == ('rgb(13, 17, 23)' if dark else 'rgb(255, 255, 255)')
    assert found['least'] >= 4.5, found['words']
    assert len(found['figures']) > 20 and min(found['figures']) >= (340 if width == 390 else 400)
    assert found['smallest'] >= 8  # pixels


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason='there is no Chromium')
def test_as_it_is_the_browser_has_nothing_to_complain_of(report):
    command = [
        *(CHROMIUM, '--headless', '--no-sandbox', '--disable-gpu', '--dump-dom', '--enable-logging=stderr'),
        f'file://{report / "report.html"}',
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert 'CONSOLE' not in done.stderr and '<h1>Report of all</h1>' in done.stdout
