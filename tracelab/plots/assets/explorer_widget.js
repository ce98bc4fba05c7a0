export default {
  render({ model, el }) {
    if (!window.Plotly) {
      const script = document.createElement("script");
      script.textContent = model.get("library");
      document.head.append(script);
    }
    // The static twin, shown where no widget can live, gives way to the living one.
    const twin = document.getElementById(model.get("twin"));
    if (twin) twin.style.display = "none";
    const explorer = traceExplorer(el, JSON.parse(model.get("content")), (traceId) =>
      model.send({ trace_id: traceId }));
    const answer = (message) => explorer.draw(message.trace_id, JSON.parse(message.figure));
    model.on("msg:custom", answer);
    return () => model.off("msg:custom", answer);
  },
};
