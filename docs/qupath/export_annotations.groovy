/*
 * Exports the annotations with a class of all images of the open project, to be counted by the job
 * "recount": GeoJSON, a file for each image, in the folder "corrected" of the project. For QuPath
 * 0.5 and 0.6.
 *
 * Save the open image first (File > Save). Automate > Script editor > Run (not "Run for project").
 */
import groovy.json.JsonOutput
import qupath.lib.io.GsonTools

def project = getProject()
if (project == null) {
    println "Open a project first."
    return
}
def folder = new File(buildFilePath(PROJECT_BASE_DIR, "corrected"))
folder.mkdirs()
def gson = GsonTools.getInstance()
def names = [] as Set  // of the files written

for (entry in project.getImageList()) {
    def imageData = entry == getProjectEntry() ? getCurrentImageData() : entry.readImageData()
    def annotations = imageData.getHierarchy().getAnnotationObjects().findAll { it.getPathClass() != null }
    if (annotations.isEmpty()) {
        println entry.getImageName() + ": no annotations with a class"
        continue
    }
    def server = imageData.getServer()
    // The size shows the job "recount" whether annotations belong to a map.
    def image = [name: entry.getImageName(), width: server.getWidth(), height: server.getHeight()]
    // Of the file, not of the entry, which may have been renamed; what a file name cannot hold goes.
    def uri = server.getURIs().find { it.getScheme() == "file" }
    def name = (uri ? new File(uri.getPath()).name : entry.getImageName()).replaceAll('[/\\\\:*?"<>|]', "_")
    if (!names.add(name)) {
        name += "_" + entry.getID()
        println "Two images have one file name: rename " + name + ".geojson as its map"
    }
    def file = new File(folder, name + ".geojson")
    file.withWriter("UTF-8") { writer ->
        writer.write('{"type":"FeatureCollection","image":' + JsonOutput.toJson(image) + ',"features":[')
        annotations.eachWithIndex { annotation, number ->
            writer.write(number ? ",\n" : "\n")
            gson.toJson(annotation, writer)
        }
        writer.write("\n]}\n")
    }
    println file.path + ": " + annotations.size() + " annotations"
}
