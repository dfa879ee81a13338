// The slide and its map: two viewers on top of each other, or side by side, that move as one.
// Positions are pixels of the slide's level 0; lengths on the glass are micrometers.

(function (app) {
  "use strict";
  const ZOOM = 1.4; // by a key
  const STEP = 0.2; // of the screen, by a key
  const CLOSEST = 8; // screen pixels for a pixel of the slide

  app.makeStage = function (state) {
    const [width, height] = state.size;
    const [mppX, mppY] = state.mpp;
    const whole = width * mppX; // micrometers: 1 in the viewers' own coordinates
    const tissuePane = document.getElementById("tissue");
    const mapPane = document.getElementById("map");
    const moved = [];

    function describeTiles(kind, layer, ending) {
      const query = state.version ? `?v=${state.version}` : "";
      return {
        width: layer.size[0],
        height: layer.size[1],
        tileSize: layer.side,
        tileOverlap: 0,
        minLevel: layer.first || 0,
        maxLevel: layer.last,
        hasTransparency: () => ending === "png",
        getTileUrl: (level, x, y) => `tiles/${kind}/${level}/${x}_${y}.${ending}${query}`,
      };
    }

    // Whole pixels of the screen: browsers would stretch and blur the rest.
    const element = document.getElementById("stage");
    function align() {
      const box = element.getBoundingClientRect();
      const [left, top] = [Math.ceil(box.left) - box.left, Math.ceil(box.top) - box.top];
      const half = document.body.classList.contains("beside") ? 2 : 1;
      const across = Math.floor((box.width - left) / half);
      const down = Math.floor(box.height - top);
      for (const pane of [tissuePane, mapPane, document.getElementById("marks")]) {
        const isRight = half === 2 && pane === mapPane;
        pane.style.left = `${left + (isRight ? across : 0)}px`;
        pane.style.top = `${top}px`;
        pane.style.width = `${across}px`;
        pane.style.height = `${down}px`;
      }
    }
    align();
    new ResizeObserver(align).observe(element);

    const common = {
      prefixUrl: "",
      preserveViewport: true, // where it is said in the address
      showNavigationControl: false,
      gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
      gestureSettingsTouch: { clickToZoom: false, dblClickToZoom: true },
      gestureSettingsPen: { clickToZoom: false },
      blendTime: 0,
      animationTime: 0.4,
      visibilityRatio: 0.3,
      minZoomLevel: 0.1,
      maxZoomLevel: (CLOSEST * whole) / (Math.min(mppX, mppY) * 300),
    };
    const tissue = window.OpenSeadragon({ ...common, element: tissuePane, drawer: "canvas" });
    const map = window.OpenSeadragon({
      ...common,
      element: mapPane,
      drawer: app.MapDrawer,
      immediateRender: true,
    });
    for (const viewer of [tissue, map]) {
      // Keys are the page's own.
      viewer.addHandler("canvas-key", (event) => { event.preventDefaultAction = true; });
      viewer.canvas.tabIndex = -1;
    }
    mapPane.querySelector(".openseadragon-canvas").classList.add("painted");

    if (state.tissue) {
      tissue.addTiledImage({
        tileSource: describeTiles("tissue", state.tissue, "jpg"),
        width: (state.tissue.size[0] * state.tissue.mpp) / whole,
        error: (event) => app.say(event.message),
      });
    } else {
      tissue.addSimpleImage({ url: "thumbnail.png", width: 1 });
    }
    const layers = new Map();
    let shown = "";

    function showLayer(name) {
      shown = name;
      if (!layers.has(name)) {
        const layer = state.layers[name];
        layers.set(name, null);
        map.addTiledImage({
          tileSource: describeTiles(name, layer, "png"),
          width: (layer.size[0] * layer.mpp) / whole,
          success: (event) => {
            layers.set(name, event.item);
            showLayer(shown);
          },
        });
      }
      for (const [other, item] of layers) if (item) item.setOpacity(other === name ? 1 : 0);
    }

    // ---- moving: one of them leads, the other follows before anything is drawn

    let leader = tissue;
    for (const [viewer, pane] of [[tissue, tissuePane], [map, mapPane]])
      for (const event of ["pointerdown", "wheel", "touchstart"])
        pane.addEventListener(event, () => { leader = viewer; }, { capture: true, passive: true });

    function follow() {
      const other = leader === tissue ? map : tissue;
      const from = leader.viewport;
      other.viewport.zoomTo(from.getZoom(true), null, true);
      other.viewport.panTo(from.getCenter(true), true);
      for (const each of moved) each();
    }
    for (const viewer of [tissue, map])
      viewer.addHandler("viewport-change", () => { if (viewer === leader) follow(); });
    for (const viewer of [tissue, map])
      viewer.addHandler("resize", () => setTimeout(follow));

    const toPoint = (x, y) => new window.OpenSeadragon.Point((x * mppX) / whole, (y * mppY) / whole);
    const fromPoint = (point) => [(point.x * whole) / mppX, (point.y * whole) / mppY];

    // Micrometers per pixel of the screen.
    const getScale = () => whole / (leader.viewport.getZoom(true) * leader.viewport.getContainerSize().x);

    function goTo(x, y, um, immediately) {
      const { x: across, y: down } = leader.viewport.getContainerSize();
      const tall = (um * down) / across;
      const corner = toPoint(x, y);
      leader.viewport.fitBounds(
        new window.OpenSeadragon.Rect(corner.x - um / whole / 2, corner.y - tall / whole / 2, um / whole, tall / whole),
        immediately,
      );
    }

    function fit(box, share, immediately) {
      const [left, top, wide, tall] = box;
      const { x: across, y: down } = leader.viewport.getContainerSize();
      const um = Math.max(wide * mppX, (tall * mppY * across) / down) / share;
      goTo(left + wide / 2, top + tall / 2, um, immediately);
    }

    return {
      showLayer,
      getScale,
      whenMoved: (handler) => moved.push(handler),
      refresh: follow,
      // Whether everything that is to be seen is there.
      isStill: () => [tissue, map].every((viewer) => {
        const { world } = viewer;
        const items = Array.from({ length: world.getItemCount() }, (_, i) => world.getItemAt(i));
        return items.length && items.every((item) => item.opacity === 0 || item.getFullyLoaded()) &&
          viewer.viewport.getZoom(true) === viewer.viewport.getZoom(false);
      }),
      // Corners of what is on the screen, in pixels of the slide.
      getView() {
        const bounds = leader.viewport.getBoundsNoRotate(true);
        return [...fromPoint(bounds.getTopLeft()), ...fromPoint(bounds.getBottomRight())];
      },
      getPlace() {
        const [x, y] = fromPoint(leader.viewport.getCenter(false));
        return { x, y, um: whole / leader.viewport.getZoom(false) };
      },
      goTo,
      fit,
      setPower(power) {
        const { x, y } = this.getPlace();
        goTo(x, y, (10 / power) * leader.viewport.getContainerSize().x);
      },
      zoom(closer) {
        leader.viewport.zoomBy(closer ? ZOOM : 1 / ZOOM);
        leader.viewport.applyConstraints();
      },
      move(x, y) {
        const bounds = leader.viewport.getBounds();
        leader.viewport.panBy(
          new window.OpenSeadragon.Point(x * STEP * bounds.width, y * STEP * bounds.height));
        leader.viewport.applyConstraints();
      },
      // Where a pointer is on the slide; pane: null, or the element that it is over.
      locate(event) {
        const isMap = mapPane.contains(event.target);
        const box = (isMap ? mapPane : tissuePane).getBoundingClientRect();
        const pixel = new window.OpenSeadragon.Point(event.clientX - box.left, event.clientY - box.top);
        return fromPoint((isMap ? map : tissue).viewport.pointFromPixel(pixel, true));
      },
      // Where a place of the slide is on the pane of the tissue.
      project(x, y) {
        const pixel = tissue.viewport.pixelFromPoint(toPoint(x, y), true);
        return [pixel.x, pixel.y];
      },
      setMovable(isMovable) {
        tissue.setMouseNavEnabled(isMovable);
        map.setMouseNavEnabled(isMovable);
      },
      setBeside(isBeside) {
        leader = tissue;
        document.body.classList.toggle("beside", isBeside);
        align();
      },
    };
  };
})(window.TissueMap);
