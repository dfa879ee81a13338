// Draws gray tiles of a map: a pixel of the screen gets the value at its center, exactly. The
// drawers of OpenSeadragon stretch tiles by up to a pixel to hide seams, which moves a map against
// its slide; here no pixel belongs to two tiles, or to none.

window.TissueMap = window.TissueMap || {};

(function (app, OpenSeadragon) {
  "use strict";

  app.MapDrawer = class extends OpenSeadragon.DrawerBase {
    static isSupported() { return true; }
    getType() { return "map"; }
    getSupportedDataFormats() { return ["image"]; }
    canRotate() { return false; }
    setImageSmoothingEnabled() {} // never

    _createDrawingElement() {
      const canvas = OpenSeadragon.makeNeutralElement("canvas");
      this.patterns = new WeakMap(); // image -> pattern
      return canvas;
    }

    draw(tiledImages) {
      const { x: width, y: height } = this._calculateCanvasSize();
      if (this.canvas.width !== width || this.canvas.height !== height) {
        this.canvas.width = width;
        this.canvas.height = height;
      }
      const context = this.canvas.getContext("2d");
      context.imageSmoothingEnabled = false;
      context.clearRect(0, 0, width, height);
      for (const tiledImage of tiledImages) {
        if (tiledImage.opacity === 0) continue;
        for (const { tile } of tiledImage.getTilesToDraw()) this.drawTile(context, tile);
      }
    }

    drawTile(context, tile) {
      const image = tile.loaded && this.getDataToDraw(tile);
      if (!image) return;
      const density = OpenSeadragon.pixelDensityRatio;
      const [left, top] = [tile.position.x * density, tile.position.y * density];
      const [across, down] = [tile.size.x * density, tile.size.y * density];
      if (!this.patterns.has(image)) this.patterns.set(image, context.createPattern(image, "no-repeat"));
      const pattern = this.patterns.get(image);
      pattern.setTransform(new DOMMatrix([across / image.width, 0, 0, down / image.height, left, top]));
      context.fillStyle = pattern;
      // The pixels whose centers lie in the tile.
      const [x0, y0] = [Math.ceil(left - 0.5), Math.ceil(top - 0.5)];
      const [x1, y1] = [Math.ceil(left + across - 0.5), Math.ceil(top + down - 0.5)];
      context.clearRect(x0, y0, x1 - x0, y1 - y0);
      context.fillRect(x0, y0, x1 - x0, y1 - y0);
    }

    destroy() {
      super.destroy();
      this.container.removeChild(this.canvas);
    }
  };
})(window.TissueMap, window.OpenSeadragon);
