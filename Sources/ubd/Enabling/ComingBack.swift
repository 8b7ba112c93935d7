import BrokerInterface
import Glibc
import SystemCalls
import Targets

/// Whether a device can come back by itself, and the options that bring it: what `ubd add` was told, so that it means the same to a
/// program without a terminal in another folder.
struct ComingBack {
    /// The options of `ubd add`, but for number and name.
    private(set) var options: [String] = []
    /// What does not come back, or depends on something.
    var notes: [String] = []

    /// Of a command that adds a device. Paths become absolute; symbolic links in them stay, as /dev/disk/by-id has them.
    ///
    /// - Parameter name: of its file.
    /// - Throws: when the device needs somebody who types, or something that only this process has.
    init(_ command: AddCommand, named name: String? = nil) throws(CommandFailure) {
        let target = TargetList.all.first { $0.name == command.target }
        options = ["-t", command.target]
        for (name, value) in command.ofTarget.inputs {
            let isFile = target?.takesSockets != true
            options += ["--" + name, isFile ? try Self.absolute(value) : try Self.checkedURI(value)]
        }
        for (name, value) in command.ofTarget.given { options += ["--" + name] + [value].compactMap { $0 } }
        if command.queues != AddPlan.defaultQueues { options += ["--queues", String(command.queues)] }
        if let depth = command.depth { options += ["--depth", String(depth)] }
        if let size = command.maxIOSize { options += ["--max-io-size", size.text] }
        if command.readOnly { options.append("--read-only") }
        if let recovery = command.recovery { options += ["--recovery", recovery] }
        if let seconds = command.ioTimeout { options += ["--io-timeout", String(seconds)] }
        if let mode = command.mode { options += ["--mode", mode] }
        if let cpus = command.cpus { options += ["--cpus", cpus] }
        if command.shared { options.append("--shared") }
        // Its file's name is its own, if nothing else is said.
        if let other = command.name, other != name { options += ["--name", other] }
        if let partition = command.partition { options += ["--partition", partition] }
        if let target { try addSecret(target, command.key) }
        if let memory = command.layer.memory { options += ["--memory", memory.text] }
        if let scratch = command.layer.scratch { options += ["--scratch", try Self.absolute(scratch)] }
        if target?.hasBlockMap == true {
            notes.append("what is written to it does not come back: each start begins with the file as it is")
        }
        try addDialling(command)
        if target?.isInMemory == true {
            notes.append("its content does not come back: each start makes an empty disk")
        }
    }

    /// A secret that somebody types, or that only this process has open, is not there at a boot.
    private mutating func addSecret(_ target: TargetManifest, _ key: KeyOptions) throws(CommandFailure) {
        guard target.takesSecret else { return }
        guard let file = key.keyFile else {
            throw CommandFailure(
                .usage, "NeedsSecret",
                "a \(target.name) device cannot come back by itself when \(key.descriptor.map { "--key-fd \($0) gives" } ?? "somebody types") its key",
                remedy:
                    "name a file with it by --key-file; 'cryptsetup luksAddKey FILE KEYFILE' makes one open the volume, too"
            )
        }
        options += ["--key-file", try Self.absolute(file)]
        if let header = key.header { options += ["--header", try Self.absolute(header)] }
        notes.append("whoever can read \(file) can open the volume: protect it")
    }

    private mutating func addDialling(_ command: AddCommand) throws(CommandFailure) {
        if let folder = command.dial.certificates { options += ["--tls-certificates", try Self.absolute(folder)] }
        if let file = command.dial.keyFile { options += ["--tls-psk-file", try Self.absolute(file)] }
        if let name = command.dial.username { options += ["--tls-username", name] }
        if let name = command.dial.hostname { options += ["--tls-hostname", name] }
        if command.restartCommand { options.append("--restart-command") }
        guard let program = command.server.first else { return }
        options += ["--", try Self.program(program)] + command.server.dropFirst()
        notes.append(
            "its unit starts the command in another folder and with another environment: let it name files from / on")
    }

    /// The path from / on.
    static func absolute(_ path: String) throws(CommandFailure) -> String {
        if path.hasPrefix("/") { return path }
        guard let here = getcwd(nil, 0) else {
            throw CommandFailure(
                .usage, "BadFile", "\(path): the working directory is gone", remedy: "change into one that exists")
        }
        defer { free(here) }
        let folder = TypedText.text(UnsafeRawBufferPointer(start: here, count: strlen(here)))
        var rest = path[...]
        while rest.hasPrefix("./") { rest = rest.dropFirst(2).drop { $0 == "/" } }
        return (folder == "/" ? "" : folder) + "/" + rest
    }

    /// A program's path from / on, found as a shell finds it.
    private static func program(_ word: String) throws(CommandFailure) -> String {
        if word.contains("/") { return try absolute(word) }
        let folders = (getenv("PATH").map { String(cString: $0) } ?? "/usr/bin:/bin").split(separator: ":")
        for folder in folders where folder.hasPrefix("/") {
            let path = folder + "/" + word
            if access(path.systemPath, X_OK) == 0 { return path }
        }
        throw CommandFailure(
            .usage, "Usage", "there is no program '\(word)' in PATH", remedy: "name it from / on, as in /usr/bin/nbdkit"
        )
    }

    /// The socket of a URI has to be named from / on.
    private static func checkedURI(_ uri: String) throws(CommandFailure) -> String {
        guard let query = uri.split(separator: "?", maxSplits: 1).dropFirst().first else { return uri }
        for part in query.split(separator: "&") where part.hasPrefix("socket=") {
            let path = part.dropFirst("socket=".count)
            guard path.hasPrefix("/") || path.lowercased().hasPrefix("%2f") else {
                throw CommandFailure(
                    .usage, "Usage", "the socket '\(path)' is named from this folder on, where its unit does not start",
                    remedy: "name it from / on")
            }
        }
        return uri
    }
}
