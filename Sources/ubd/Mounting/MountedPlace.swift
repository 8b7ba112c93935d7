import Glibc
import SystemCalls

/// A mount of this process's mount namespace, from /proc/self/mountinfo (proc(5)).
struct MountedPlace: Equatable {
    /// The path of the mount point, byte by byte.
    let point: [UInt8]
    let type: String
    /// What the file system names as its source: for those that `ubd mount` starts the device's node.
    let source: String
    /// Of a FUSE mount: the user whose server it is (mount option user_id of fuse, set by the kernel); else nil.
    var user: UInt32?

    /// All mounts; of two at one place the later covers the earlier.
    static func all() throws(SystemError) -> [MountedPlace] {
        parse(try readFile("/proc/self/mountinfo", limit: 64 << 20))
    }

    /// The failure of a command that needs the table.
    static func unread(_ error: SystemError) -> CommandFailure {
        CommandFailure(
            error.errno == ENOENT ? .hostLacksSomething : .failed, "NoMountTable", "\(error)",
            remedy: CommandFailure.limitRemedy(error.errno) ?? "mount /proc")
    }

    /// The mount that is seen at `path`, a path without symbolic links.
    static func at(_ path: [UInt8]) throws(SystemError) -> MountedPlace? { try all().last { $0.point == path } }

    /// Lines that are not understood are left out.
    static func parse(_ bytes: [UInt8]) -> [MountedPlace] {
        bytes.split(separator: UInt8(ascii: "\n")).compactMap { line in
            let fields = line.split(separator: UInt8(ascii: " "), omittingEmptySubsequences: false)
            // A hyphen ends the optional fields, which begin at the seventh.
            guard fields.count > 6, let hyphen = fields[6...].firstIndex(where: { $0.elementsEqual([0x2D]) }),
                hyphen + 2 < fields.count
            else { return nil }
            return MountedPlace(
                point: MountTable.unescaped(fields[4]), type: String(decoding: fields[hyphen + 1], as: UTF8.self),
                source: String(decoding: MountTable.unescaped(fields[hyphen + 2]), as: UTF8.self),
                user: fields.count > hyphen + 3 ? user(of: fields[hyphen + 3]) : nil)
        }
    }

    /// Of the options of a FUSE file system, as in "rw,user_id=1000,group_id=1000".
    private static func user(of options: ArraySlice<UInt8>) -> UInt32? {
        let words = options.split(separator: UInt8(ascii: ",")).map { String(decoding: $0, as: UTF8.self) }
        return words.first { $0.hasPrefix("user_id=") }.flatMap { UInt32($0.dropFirst("user_id=".count)) }
    }
}
