/*
 * Imports tissue maps into the open project: the regions of tissue.geojson as annotations of the
 * image that they belong to, unlocked, to be corrected. For QuPath 0.5 and 0.6.
 *
 * 1. Set `maps` to the workdir of the maps.
 * 2. Automate > Script editor > Run (not "Run for project": it visits all images by itself).
 *
 * An image that has annotations of its map already is left as it is, so that no correction is lost.
 */
import groovy.json.JsonSlurper
import java.util.zip.GZIPInputStream
import qupath.lib.io.PathIO

def maps = "/path/to/runs/maps"

def project = getProject()
if (project == null) {
    println "Open a project first."
    return
}

// Path of a slide, and its name alone -> the folders with its map.
def byPath = [:].withDefault { [] as Set }
def byName = [:].withDefault { [] as Set }
(new File(maps).listFiles() ?: []).each { folder ->
    def summary = new File(folder, "slide.json")
    if (summary.isFile()) {
        def slide = new File(new JsonSlurper().parse(summary, "UTF-8").file as String)
        byPath[slide.absolutePath] << folder
        byName[slide.name] << folder
    }
}
if (byName.isEmpty()) {
    println "No finished maps in " + maps + ": correct the path at the top of this script."
    return
}

def readAnnotations = { File folder ->
    def plain = new File(folder, "tissue.geojson")
    def packed = new File(folder, "tissue.geojson.gz")
    if (!plain.isFile() && !packed.isFile())
        return null
    def stream = plain.isFile() ? plain.newInputStream() : new GZIPInputStream(packed.newInputStream())
    def annotations = stream.withCloseable { PathIO.readObjectsFromGeoJSON(it) }
    annotations.each {
        it.setLocked(false)
        it.getMeasurementList().clear()  // areas of the map, which a correction would make wrong
    }
    return annotations
}

for (entry in project.getImageList()) {
    def name = entry.getImageName()
    def files = entry.getURIs().findAll { it.getScheme() == "file" }.collect { new File(it.getPath()) }
    def folders = files.collectMany { byPath[it.absolutePath] } as Set
    if (folders.isEmpty())
        folders = files.collectMany { byName[it.name] } as Set
    if (folders.size() != 1) {
        println name + ": " + (folders ? "several maps, import one by hand" : "no map")
        continue
    }
    def annotations = readAnnotations(folders.first())
    if (annotations == null) {
        println name + ": its map has no tissue.geojson"
        continue
    }
    // The open image is changed where it is seen; others on the disk.
    def isOpen = entry == getProjectEntry()
    def imageData = isOpen ? getCurrentImageData() : entry.readImageData()
    def hierarchy = imageData.getHierarchy()
    def known = hierarchy.getAnnotationObjects().collect { it.getID() } as Set
    if (annotations.any { it.getID() in known }) {
        println name + ": has annotations of its map already"
        continue
    }
    hierarchy.addObjects(annotations)
    entry.saveImageData(imageData)
    println name + ": " + annotations.size() + " annotations"
}
project.syncChanges()
