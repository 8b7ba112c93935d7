import Glibc
import SystemCalls

/// The folder of a trusted file, found by walking from the root, as safe_path of OpenSSH does (misc.c). Each folder on
/// the path must belong to root and be writable by nobody else, also a folder with a sticky bit such as /tmp.
///
/// Who can write a folder can replace the file in it by another file of root's. A symbolic link is followed only in a
/// trusted folder, so root made it. Each step starts from the open folder before it, so that nothing changes between
/// check and use.
struct TrustedFolder {
    /// A folder opened with O_PATH.
    private final class Step {
        let file: FileDescriptor
        let status: stat

        init(_ file: consuming FileDescriptor) throws(SystemError) {
            status = try file.status()
            self.file = file
        }
    }

    private let folder: Step
    /// The last part of the path: the file's name in the folder.
    let name: String

    /// For openat(2), valid while this exists.
    var raw: Int32 { folder.file.raw }

    /// The kernel's limit of symbolic links in a path (path_resolution(7)).
    private static let mostLinks = 40

    /// Opens the folder of this path.
    init(of path: String) throws(TrustedFile.Distrust) {
        var parts = TrustedFolder.parts(path)
        guard let name = parts.popLast(), name != "..", !path.hasSuffix("/") else {
            throw TrustedFile.unreadable(path, SystemError("open", EISDIR))
        }
        if !path.hasPrefix("/") { parts = TrustedFolder.parts(TrustedFolder.workingFolder) + parts }
        folder = try TrustedFolder.walk(parts, path)
        self.name = name
    }

    private static func walk(_ parts: [String], _ path: String) throws(TrustedFile.Distrust) -> Step {
        var folder = try root(path)
        // The next part is last.
        var left = Array(parts.reversed())
        var links = 0
        while let part = left.popLast() {
            let next: Step
            do throws(SystemError) {
                let flags = O_PATH | O_NOFOLLOW | O_CLOEXEC
                next = try Step(FileDescriptor(owning: try call("open") { openat(folder.file.raw, part, flags) }))
            } catch { throw TrustedFile.unreadable(path, error) }
            switch next.status.st_mode & S_IFMT {
            case S_IFLNK:
                links += 1
                guard links <= mostLinks, let target = linkTarget(next.file) else {
                    throw TrustedFile.unreadable(path, SystemError("open", ELOOP))
                }
                left += TrustedFolder.parts(target).reversed()
                if target.hasPrefix("/") { folder = try root(path) }
            case S_IFDIR:
                try check(next, path)
                folder = next
            default: throw TrustedFile.unreadable(path, SystemError("open", ENOTDIR))
            }
        }
        return folder
    }

    private static func root(_ path: String) throws(TrustedFile.Distrust) -> Step {
        let root: Step
        do throws(SystemError) { root = try Step(try FileDescriptor.open("/", O_PATH | O_DIRECTORY)) } catch {
            throw TrustedFile.unreadable(path, error)
        }
        try check(root, path)
        return root
    }

    /// Throws when a user other than root can put files into the folder.
    private static func check(_ folder: Step, _ path: String) throws(TrustedFile.Distrust) {
        guard let problem = TrustedFile.ownership(folder.status) else { return }
        let name = SystemCalls.linkTarget("/proc/self/fd/\(folder.file.raw)") ?? "on its way"
        throw TrustedFile.Distrust(
            description: "\(path): its folder \(name) \(asOfFolder(problem.what)); \(problem.remedy) \(name), "
                + "or keep the file where root alone can write")
    }

    /// Rewords "others can write it (mode 777)" so that the folder's name is the subject.
    private static func asOfFolder(_ what: String) -> String {
        what.hasPrefix("others can write it") ? "can be written by others" + what.dropFirst(19) : what
    }

    private static func linkTarget(_ link: borrowing FileDescriptor) -> String? {
        var buffer = [UInt8](repeating: 0, count: Int(PATH_MAX))
        let count = buffer.withUnsafeMutableBytes {
            readlinkat(link.raw, "", $0.baseAddress!.assumingMemoryBound(to: CChar.self), $0.count)
        }
        return count > 0 && count < buffer.count ? String(decoding: buffer[0..<count], as: UTF8.self) : nil
    }

    private static var workingFolder: String {
        guard let text = getcwd(nil, 0) else { return "/" }
        defer { free(text) }
        return String(cString: text)
    }

    private static func parts(_ path: String) -> [String] {
        path.split(separator: "/").map(String.init).filter { $0 != "." }
    }
}
