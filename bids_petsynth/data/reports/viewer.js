// The controls of the interactive viewer. NiiVue lies compressed in the page and is unpacked when the viewer is opened.
"use strict";
(() => {
  const at = (name) => document.getElementById("viewer-" + name);
  if (!at("open")) return;
  let scans, viewer, library;

  // base64 of gzip -> bytes
  async function unpack(text) {
    const bytes = Uint8Array.from(atob(text.trim()), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  async function load() {
    const code = await unpack(at("bundle").textContent);
    const address = URL.createObjectURL(new Blob([code], { type: "text/javascript" }));
    await new Promise((done, fail) => {
      const script = document.createElement("script");
      script.src = address;
      script.onload = done;
      script.onerror = fail;
      document.head.append(script);
    });
    URL.revokeObjectURL(address);
    return window.niivue;
  }

  const volume = (base64, name, options) => library.NVImage.loadFromBase64({ base64, name: name + ".nii.gz", ...options });

  // a table of colours in which neighbouring codes differ in hue and lightness
  function colours(names) {
    const table = { R: [0], G: [0], B: [0], A: [0], I: [0], labels: [""] };
    names.forEach((name, number) => {
      const hue = (number * 137.5) % 360, light = [0.35, 0.55, 0.75][number % 3];
      const channel = (shift) => {
        const k = (shift + hue / 30) % 12;
        return Math.round(255 * (light - 0.7 * Math.min(light, 1 - light) * Math.max(-1, Math.min(k - 3, 9 - k, 1))));
      };
      table.R.push(channel(0)); table.G.push(channel(8)); table.B.push(channel(4));
      table.A.push(255); table.I.push(number + 1); table.labels.push(name.replaceAll("_", " "));
    });
    return table;
  }

  // show the chosen scan and tracer; what the sliders say is kept
  async function show() {
    const scan = scans[at("scan").value];
    const pet = scan.pets[at("tracer").value];
    viewer.volumes.slice().forEach((old) => viewer.removeVolume(old));
    viewer.addVolume(await volume(scan.t1w, "T1w", { colormap: "gray", cal_min: 0, cal_max: 1 / at("t1w").value }));
    if (pet) {
      const options = { colormap: pet.colours, opacity: +at("pet").value, cal_min: pet.low, cal_max: pet.high };
      viewer.addVolume(await volume(pet.image, pet.tracer, options));
      at("low").value = pet.low;
      at("high").value = pet.high;
    }
    const labels = await volume(scan.labels, "labels", { opacity: +at("labels").value });
    viewer.addVolume(labels);
    labels.setColormapLabel(colours(scan.names));
    viewer.updateGLVolume();
    viewer.createOnLocationChange();
  }

  function tracers() {
    const options = scans[at("scan").value].pets.map((pet, number) => new Option(pet.tracer, number));
    at("tracer").replaceChildren(...options);
  }

  const image = (name) => viewer.volumes.findIndex((found) => found.name.startsWith(name));

  function opacity(slider, name) {
    const number = image(name);
    if (number > 0) viewer.setOpacity(number, +at(slider).value);
  }

  function window_(name, low, high) {
    const found = viewer.volumes[image(name)];
    if (!found || !(high > low)) return;
    found.cal_min = low;
    found.cal_max = high;
    viewer.updateGLVolume();
  }

  const tracer = () => at("tracer").selectedOptions[0]?.text ?? "none";

  function listen() {
    at("scan").addEventListener("change", () => { tracers(); show(); });
    at("tracer").addEventListener("change", show);
    at("view").addEventListener("change", () => viewer.setSliceType(+at("view").value));
    at("t1w").addEventListener("input", () => window_("T1w", 0, 1 / at("t1w").value));
    at("pet").addEventListener("input", () => opacity("pet", tracer()));
    at("labels").addEventListener("input", () => opacity("labels", "labels"));
    at("outline").addEventListener("change", () => viewer.setAtlasOutline(at("outline").checked ? 1 : 0));
    for (const end of ["low", "high"]) {
      at(end).addEventListener("change", () => window_(tracer(), +at("low").value, +at("high").value));
    }
  }

  // where the cross is and what lies there
  function tell(place) {
    const mm = [...place.mm].slice(0, 3).map((x) => x.toFixed(0)).join(", ");
    const said = place.values.map((found) => {
      const name = found.name.replace(/\.nii\.gz$/, "");
      if (name === "labels") return scans[at("scan").value].names[found.value - 1]?.replaceAll("_", " ") ?? "no label";
      return name + " " + found.value.toFixed(2) + (name === "T1w" ? "" : " SUVR");
    });
    at("place").textContent = "at " + mm + " mm: " + said.join(" · ");
  }

  at("open").addEventListener("click", async () => {
    at("open").disabled = true;
    at("state").textContent = "Unpacking …";
    try {
      library = await load();
      scans = JSON.parse(at("data").textContent);
      at("panel").hidden = false;
      viewer = new library.Niivue({
        backColor: [0, 0, 0, 1], crosshairColor: [0.34, 0.71, 0.91, 0.8], crosshairWidth: 0.5,
        show3Dcrosshair: true, logLevel: "error", onLocationChange: tell,
      });
      await viewer.attachToCanvas(at("canvas"));
      tracers();
      listen();
      await show();
      viewer.setSliceType(+at("view").value);
      at("open").hidden = true;
      at("state").textContent = "Click to move the cross, scroll to change slices, drag with the right button to set the window.";
      document.body.dataset.viewer = "ready";
    } catch (error) {
      at("state").textContent = "The viewer could not be started here (it needs WebGL 2): " + error.message;
    }
  });
  // a link to sub-X.html#viewer opens it at once
  if (location.hash === "#viewer") at("open").click();
})();
