import Glibc
import SystemCalls

/// The folder in which a trusted file lies, reached step by step from the root, as OpenSSH's safe_path looks at one
/// (misc.c): each folder on the way belongs to root and nobody else can write it; /tmp with its sticky bit is no exception.
///
/// Who can write a folder can put another file of root's in the place of the one that is meant. Symbolic links are followed
/// only where they lie in such a folder, so root put them there. Each step is taken from the open folder before it, so that
/// nothing changes between the look and the use.
struct TrustedFolder {
    /// An open folder (O_PATH), held by whoever walks.
    private final class Step {
        let file: FileDescriptor
        let status: stat

        init(_ file: consuming FileDescriptor) throws(SystemError) {
            status = try file.status()
            self.file = file
        }
    }

    private let folder: Step
    /// The rest of the path: the name of the file in that folder.
    let name: String

    /// For openat(2), as long as this exists.
    var raw: Int32 { folder.file.raw }

    /// As many symbolic links on one path as the kernel follows (path_resolution(7)).
    private static let mostLinks = 40

    /// Opens the folder of that path.
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
        // The next one last.
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

    /// Throws when somebody else than root can put files into the folder.
    private static func check(_ folder: Step, _ path: String) throws(TrustedFile.Distrust) {
        guard let problem = TrustedFile.ownership(folder.status) else { return }
        let name = SystemCalls.linkTarget("/proc/self/fd/\(folder.file.raw)") ?? "on its way"
        throw TrustedFile.Distrust(
            description: "\(path): its folder \(name) \(asOfFolder(problem.what)); \(problem.remedy) \(name), "
                + "or keep the file where root alone can write")
    }

    /// "others can write it (mode 777)" is said of the folder's name.
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
