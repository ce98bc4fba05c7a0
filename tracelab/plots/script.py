"""Figures in pages: the library as a script, and data that cannot end one."""

from importlib import resources


def plotly_script() -> str:
    """Return the bundled plotly.js as a script element.

    Returns
    -------
    str
        HTML; it sets ``window.Plotly``.

    Raises
    ------
    FileNotFoundError
        If the package was installed without its assets.
    """
    folder = resources.files("tracelab.export").joinpath("assets")
    library = folder.joinpath("plotly.min.js").read_text("utf-8")
    # A closing tag inside the library's own text would end the script block early.
    library = library.replace("</script", "<\\/script")
    return f"<script>{library}</script>"


def script_json(text: str) -> str:
    """Make JSON text harmless inside a script element.

    Parameters
    ----------
    text : str
        JSON.

    Returns
    -------
    str
        The same JSON; no character of it can end the element.

    Raises
    ------
    AttributeError
        If `text` is no str.
    """
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
