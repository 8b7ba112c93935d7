import ArgumentParser
import Glibc

/// The options of `LayerOptions` on the command line.
struct LayerArguments: ParsableArguments {
    @Option(
        help: ArgumentHelp(
            "Keep what is written in memory when the whole device is no larger than this. (overlay) (default: 0, in a file)",
            valueName: "bytes"))
    var memory: ByteCount?

    @Option(
        help: ArgumentHelp(
            "The directory for the file with what is written. (overlay) (default: $TMPDIR, or /var/tmp)",
            valueName: "path"),
        completion: .directory)
    var scratch: String?

    var options: LayerOptions { LayerOptions(memory: memory, scratch: scratch) }
}

/// Where an overlay keeps what is written.
struct LayerOptions {
    var memory: ByteCount?
    var scratch: String?

    /// The first that was given.
    var given: String? { memory != nil ? "--memory" : scratch != nil ? "--scratch" : nil }

    /// The directory for a layer that is no memory.
    var folder: String {
        if let scratch { return scratch }
        let variable = getenv("TMPDIR").map { String(cString: $0) } ?? ""
        return variable.isEmpty ? "/var/tmp" : variable
    }
}

extension LayerOptions {
    init(_ line: inout PlainLine) {
        memory = line.value("--memory")
        scratch = line.text("--scratch")
    }
}
