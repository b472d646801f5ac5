"""``make demo``, with one of its edits."""

import demo


def test_the_demo_edits_its_clip(monkeypatch, tmp_path, capsys):
    name, edit = next(iter(demo.asked().items()))
    monkeypatch.setattr(demo, "asked", lambda: {name: edit})
    monkeypatch.setattr(demo, "FOLDER", tmp_path / "demo")
    demo.main()
    assert {path.name for path in demo.FOLDER.iterdir()} == {"source.mp4", f"{name}.mp4", f"{name}.png", "overview.png"}
    assert "\n  right\n" in capsys.readouterr().out
