"""The command line, from its entrance."""

import json
import shutil

import pytest
import training_data
from safetensors import safe_open
from safetensors.torch import load_file

from training import cli, metrics, recipes


@pytest.fixture
def run(capsys):
    """The command line's exit status, stdout and stderr."""

    def run(*argv):
        capsys.readouterr()
        try:
            status = cli.main([str(each) for each in argv])
        except SystemExit as stop:
            status = stop.code
        output = capsys.readouterr()
        return status, output.out, output.err

    return run


@pytest.fixture
def tiny(tiny_model, pairs, tmp_path):
    """Arguments of a short run."""

    def tiny(*more, output="run", **changes):
        given = {"model": tiny_model / "released", "data": pairs, "output": tmp_path / output} | changes
        fixed = ["--device", "cpu", "--steps", "2", "--batch-size", "1", "--max-pixels", "1024", "--trackers"]
        return [*(part for name, value in given.items() for part in (f"--{name}", value)), *fixed, *more]

    return tiny


def said(error):
    """The sentences on stderr that are no progress bar."""
    return [line for line in error.splitlines() if line.startswith("python -m training: ")]


@pytest.mark.parametrize("argv", [(), ("--help",), ("-h",)])
def test_help_lists_the_commands(run, argv):
    status, output, _ = run(*argv)
    assert status == 0
    for command in ("train", "describe", "cache", "check-data", "export", "plot", "recipes"):
        assert any(line.split()[:1] == [command] for line in output.splitlines())


@pytest.mark.parametrize("command", ["train", "describe", "cache"])
def test_help_of_a_command_lists_the_recipes(run, command):
    status, output, _ = run(command, "--help")
    assert status == 0
    assert all(name in output for name in recipes.RECIPES)


def test_help_of_a_recipe_lists_the_fields_with_its_values(run):
    status, output, _ = run("train", "stage3_mix", "--help")
    assert status == 0
    assert all(flag in output for flag in ("--max-pixels", "--lr", "--mllm-rank", "--validation-timesteps"))
    assert "921600" in output  # 720 x 1280
    assert "--official" in output


def test_recipes_are_listed(run):
    status, output, _ = run("recipes")
    assert status == 0
    assert [line.split()[0] for line in output.splitlines()] == list(recipes.RECIPES)
    assert "from some twenty clips" in output


def test_describe_says_what_the_flags_changed(run):
    status, output, error = run("describe", "tiny_stage1", "--lr", "0.125", "--mllm-targets", "q_proj", "v_proj")
    assert status == 0
    assert not said(error)
    fields = {line.split()[0]: line for line in output.splitlines() if line.strip()}
    assert fields["lr"].endswith(" 0.125")
    assert fields["mllm_targets"].endswith(" ('q_proj', 'v_proj')")
    assert fields["schedule"].endswith(" 'constant'")
    assert "k_proj" not in output


def test_official_gives_way_to_a_flag(run):
    status, output, _ = run("describe", "tiny_stage1", "--official", "--schedule", "cosine")
    fields = {line.split()[0]: line for line in output.splitlines() if line.strip()}
    assert status == 0
    assert fields["timestep_sampling"].endswith(" 'uniform'")
    assert fields["reference_scales"].endswith(" 0")
    assert fields["schedule"].endswith(" 'cosine'")


# Mistakes


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["dance"], "There is no command 'dance'; use one of train, "),
        (["train"], "Name a recipe after train; use one of stage1_align, "),
        (["cache", "--lr", "1"], "Name a recipe after cache; "),
        (["train", "stage9"], "There is no recipe 'stage9'; use one of stage1_align, "),
        (["train", "tiny_stage1"], "No output folder is given; pass --output."),
        (["cache", "tiny_stage1"], "No cache folder is given; pass --cache."),
        (["plot", "nowhere"], "nowhere holds no losses (metrics.jsonl); give the output folder of a run."),
        (["check-data", "nowhere.csv"], "nowhere.csv does not exist; check the path."),
        (["export", "nowhere"], "nowhere has no checkpoint; "),
    ],
)
def test_a_mistake_is_one_sentence(run, tmp_path, monkeypatch, argv, sentence):
    monkeypatch.chdir(tmp_path)
    status, output, error = run(*argv)
    assert status == 2
    assert output == ""
    assert error.startswith(f"python -m training: {sentence}")
    assert len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--lr", "much"], ["--lr", "'much'"]),
        (["--lr", "99"], ["lr is 99.0; use a number from 0 to 10."]),
        (["--bogus", "1"], ["Unrecognized options", "--bogus"]),
        (["--kinds", "sound"], ["kinds holds 'sound'; use image, video, ref."]),
    ],
)
def test_a_wrong_flag_is_named(run, tmp_path, tiny, flags, words):
    status, output, error = run("train", "tiny_stage1", *tiny(), *flags)
    assert status == 2
    assert output == ""
    text = " ".join(error.replace("│", " ").split())
    assert all(word in text for word in words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["plot", "check-data"])
def test_a_command_without_its_path_says_what_it_needs(run, command):
    status, output, error = run(command)
    assert status == 2
    assert output == ""
    assert "required" in error


@pytest.mark.parametrize("command", ["train", "cache"])
@pytest.mark.parametrize("name", ["model", "data"])
def test_a_missing_path_is_named_and_nothing_is_left_behind(run, tmp_path, tiny, command, name):
    wrong = tmp_path / "nowhere.csv"
    flags = tiny("--cache", tmp_path / "cache", **{name: wrong})
    status, output, error = run(command, "tiny_stage1", *flags)
    assert status == 2
    assert output == ""
    assert len(said(error)) == 1
    assert "nowhere.csv" in said(error)[0]
    left = [path for path in tmp_path.rglob("*") if path.is_file() and not path.name.startswith(".")]
    assert not left


@pytest.mark.parametrize("name", ["model", "data"])
def test_without_a_path_the_flag_is_named(run, tmp_path, tiny, name):
    flags = tiny()
    place = flags.index(f"--{name}")
    status, output, error = run("train", "tiny_stage1", *flags[:place], *flags[place + 2 :])
    assert (status, output) == (2, "")
    assert said(error) == [error.strip()]
    assert f"No {name} is given; pass --{name} " in error


def test_a_mistake_can_be_corrected(run, tmp_path, tiny):
    assert run("train", "tiny_stage1", *tiny(model=tmp_path / "nowhere"))[0] == 2
    status, _, error = run("train", "tiny_stage1", *tiny())
    assert (status, said(error)) == (0, [])


def test_an_output_folder_that_cannot_be_made_is_named(run, tmp_path, tiny):
    (tmp_path / "file").write_text("no folder")
    status, output, error = run("train", "tiny_stage1", *tiny(output="file/run"))
    assert status == 2
    assert output == ""
    assert len(said(error)) == 1
    assert "file" in said(error)[0]
    assert (tmp_path / "file").read_text() == "no folder"


# Data


@pytest.fixture
def table(tmp_path):
    folder = tmp_path / "data"
    return training_data.write_table(
        folder, [training_data.write_pair(folder, f"pair{number}", number, frames=1) for number in range(2)]
    )


def test_good_data_are_checked(run, table, tmp_path):
    status, output, _ = run("check-data", table, "--workers", "0", "--report", tmp_path / "report.jsonl")
    assert status == 0
    assert "Rows: 2. Errors: 0. Warnings: 0." in output
    assert (tmp_path / "report.jsonl").read_text() == ""


def test_bad_data_are_found(run, table, tmp_path):
    (table.parent / "pair1.png").unlink()
    status, output, _ = run("check-data", table, "--workers", "0", "--report", tmp_path / "report.jsonl")
    assert status == 1
    assert "pair1.png" in output
    problems = [json.loads(line) for line in (tmp_path / "report.jsonl").read_text().splitlines()]
    assert len(problems) == 1
    assert problems[0]["severity"] == "error"
    assert "pair1.png" in json.dumps(problems[0])


def test_data_are_looked_for_in_the_root(run, table, tmp_path):
    moved = shutil.move(table, tmp_path / "rows.csv")
    assert run("check-data", moved, "--workers", "0", "--quick")[0] == 1
    assert run("check-data", moved, "--workers", "0", "--quick", "--data-root", tmp_path / "data")[0] == 0


# A whole run


def contents(path):
    with safe_open(path, "pt") as file:
        return file.metadata(), {name: file.get_tensor(name).tolist() for name in file.keys()}  # noqa: SIM118


def test_cache_train_plot_and_export(run, tmp_path, tiny, table):
    flags = tiny("--cache", tmp_path / "cache", "--save-every", "1", "--ema-decay", "0.5", data=table)
    folder = tmp_path / "run"
    recipe = ["tiny_stage1", *flags]

    status, output, error = run("cache", *recipe)
    assert (status, said(error)) == (0, [])
    assert output == f"{tmp_path / 'cache'}: 2 samples encoded, 0 were there, 0 cannot be read.\n"
    assert run("cache", *recipe)[1].startswith(f"{tmp_path / 'cache'}: 0 samples encoded, 2 were there")
    assert not folder.exists()

    exported = folder / "exports" / "training.safetensors"
    status, output, error = run("train", *recipe)
    assert (status, said(error)) == (0, [])
    assert output == f"{exported}\n"
    assert [line["step"] for line in metrics.read(folder)] == [1, 2]

    status, output, _ = run("plot", folder)
    assert status == 0
    assert output == f"{folder / 'loss.png'}\n{folder / 'loss_by_part.png'}\n"

    trained = contents(exported)
    exported.unlink()
    status, output, error = run("export", folder)
    assert (status, output, said(error)) == (0, f"{exported}\n", [])
    assert contents(exported) == trained
    assert trained[0]["kiwi_edit.recipe"] == "tiny_stage1"
    assert trained[0]["kiwi_edit.step"] == "2"
    assert len(trained[0]["kiwi_edit.data"]) == 16

    status, output, error = run("train", *recipe)  # there is nothing left to do
    assert (status, said(error)) == (0, [])
    assert contents(exported) == trained
    assert len(metrics.read(folder)) == 2


def test_a_run_with_other_settings_needs_another_folder(run, tmp_path, tiny, table):
    flags = tiny(data=table)
    assert run("train", "tiny_stage1", *flags)[0] == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    status, output, error = run("train", "tiny_stage1", *flags, "--weight-decay", "0.5")
    assert (status, output) == (2, "")
    assert "holds a run with other settings (weight_decay is 0.01 there and 0.5 here)" in said(error)[0]
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_export_goes_by_the_settings_of_the_run(run, tmp_path, tiny, table):
    assert run("train", "tiny_stage1", *tiny(data=table), "--alpha", "32")[0] == 0
    folder = tmp_path / "run"
    status, output, _ = run("export", folder, "--exports", "comfyui")
    path = folder / "exports" / "run.safetensors"
    assert (status, output) == (0, f"{path}\n")
    alphas = {float(tensor) for name, tensor in load_file(path).items() if name.endswith(".alpha")}
    assert alphas == {32.0}


@pytest.mark.parametrize("flags, said_", [
    (["--queries", "--mllm-rank", "0", "--train-connector", "False", "--train-ref-connector", "True"],
     "Nothing that is trained has a part in image rows"),
    (["--mllm-targets", "qproj"], "No layer fits mllm_targets qproj"),
    (["--aspects", "1:100"], "both sides must be 16 or more"),
    (["--sample-steps", "5000"], "sample_steps is 5000"),
    (["--lr", "0"], "lr is 0"),
])  # fmt: skip
def test_a_setting_that_teaches_nothing_is_refused(run, tiny, table, flags, said_):
    status, _, error = run("train", "tiny_stage1", *tiny(data=table), *flags)
    assert status == 2
    assert said_ in " ".join(error.split())
