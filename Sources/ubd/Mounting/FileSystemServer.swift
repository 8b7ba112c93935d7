import Glibc
import Programs
import SystemCalls

/// A program that serves a file system by FUSE. The table of those that `ubd mount` knows; docs/mount.md has it, too.
struct FileSystemServer: Equatable {
    /// As blkid names them.
    let types: [String]
    let program: String
    /// Debian's package of it.
    let package: String
    let isReadOnly: Bool

    static let all = [
        FileSystemServer(types: ["ext2", "ext3", "ext4"], program: "fuse2fs", package: "fuse2fs", isReadOnly: false),
        FileSystemServer(types: ["squashfs"], program: "squashfuse", package: "squashfuse", isReadOnly: true),
    ]

    static func serving(_ type: String, _ name: String) throws(CommandFailure) -> FileSystemServer {
        if let server = all.first(where: { $0.types.contains(type) }) { return server }
        throw CommandFailure(
            .hostLacksSomething, "NoServer", "\(name) has a file system that 'ubd mount' has no server for: \(type)",
            remedy:
                "it mounts \(all.flatMap(\.types).joined(separator: ", ")); mount others in a virtual machine, or as root "
                + "if you trust the content")
    }

    /// Its path, or which package brings it.
    func find() throws(CommandFailure) -> String { try Self.find([program], package: package) }

    /// The program that mounts and unmounts for users (fusermount3(1)).
    static func unmounter() throws(CommandFailure) -> String {
        try find(["fusermount3", "fusermount"], package: "fuse3")
    }

    /// The first of these programs that PATH, or a folder of the system's programs, has.
    private static func find(_ programs: [String], package: String) throws(CommandFailure) -> String {
        let path = getenv("PATH").map { String(cString: $0) } ?? ""
        let folders = path.split(separator: ":").map(String.init).filter { $0.hasPrefix("/") }
        for program in programs {
            for folder in folders + ["/usr/bin", "/usr/sbin", "/bin", "/sbin"] {
                if access("\(folder)/\(program)", X_OK) == 0 { return "\(folder)/\(program)" }
            }
        }
        throw CommandFailure(
            .hostLacksSomething, "NotInstalled", "\(programs[0]) is not installed",
            remedy: "install it (Debian: apt install \(package))")
    }
}

/// What blkid(8) of util-linux finds in a file or a part of it. It runs as the user, in a child with a deadline.
struct FoundContent: Equatable {
    /// As blkid names it; nil: no file system.
    var type: String?
    /// The kind of a partition table.
    var table: String?

    /// The output of `blkid -p -o export`: NAME=VALUE, a line each.
    init(export text: String) {
        for line in text.split(separator: "\n") {
            if line.hasPrefix("TYPE=") { type = String(line.dropFirst(5)) }
            if line.hasPrefix("PTTYPE=") { table = String(line.dropFirst(7)) }
        }
    }

    /// The type of the file system in the part of a file at `offset` with `size` bytes (nil: to its end).
    static func fileSystem(
        of path: String, offset: UInt64, size: UInt64?, _ environment: CommandEnvironment
    ) throws(CommandFailure) -> String {
        let printed: (text: String, status: Int32)?
        do throws(SystemError) {
            let window = ["-O", String(offset)] + (size.map { ["-S", String($0)] } ?? [])
            let words = ["blkid", "-p", "-u", "filesystem,crypto,raid", "-o", "export"] + window + ["--"]
            let file = absolute(path)
            let helper = try HelperProcess { (output, null) throws(SystemError) in
                try startProgram(
                    environment.blkid, words.map { Array($0.utf8CString) } + [file], files: [null, output, 2],
                    inheritsEnvironment: false)
            }
            printed = try helper.output(most: 64 << 10, Deadline(seconds: environment.tableSeconds))
        } catch {
            guard error.errno == ENOENT else {
                throw CommandFailure(error, remedy: CommandFailure.limitRemedy(error.errno) ?? "try again")
            }
            throw CommandFailure(
                .hostLacksSomething, "NotInstalled", "\(environment.blkid) is not there",
                remedy: "install util-linux (Debian: apt install util-linux)")
        }
        guard let printed else {
            throw CommandFailure(
                .failed, "Hangs", "\(path) could not be read within \(environment.tableSeconds) s",
                remedy: "try again when it answers")
        }
        return try decide(FoundContent(export: printed.text), status: printed.status, path)
    }

    /// blkid ends with 2 when it finds nothing or cannot read, and with 8 when it finds several things (blkid(8)).
    static func decide(_ found: FoundContent, status: Int32, _ path: String) throws(CommandFailure) -> String {
        switch (status, found.type, found.table) {
        case (0, let type?, _): return type
        case (0, nil, let table?):
            throw CommandFailure(
                .usage, "NoFileSystem", "\(path) has a partition table (\(table)) and no file system of its own",
                remedy: "name a partition with --partition; see 'ubd partitions -f \(path)'")
        case (8, _, _):
            throw CommandFailure(
                .failed, "Ambiguous", "\(path) has the signs of more than one file system",
                remedy: "see 'wipefs \(path)', and remove what is left of an old one")
        default:
            throw CommandFailure(
                .failed, "NoFileSystem", "blkid knows no file system in \(path)",
                remedy: "make one, as in 'mkfs.ext4 -E root_owner \(path)'; or name a partition with --partition")
        }
    }

    /// A name that begins with a dash is no option of the program.
    static func absolute(_ path: String) -> [CChar] {
        let typed = path.systemPath
        return typed.first == CChar(bitPattern: UInt8(ascii: "/")) ? typed : [0x2E, 0x2F] + typed
    }
}
