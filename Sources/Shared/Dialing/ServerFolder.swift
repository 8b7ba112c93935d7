import Glibc
import SystemCalls

/// The folder, which only the user can enter, with the socket of a server that a `ubd-nbd` starts. Its name has the number of that
/// process, so that `ubd` can find it when the process is killed before there is a device.
public enum ServerFolder {
    /// The socket's name in it.
    public static let socket = "socket"

    private static func beginning(of process: pid_t) -> String { "ubd-nbd.\(process)." }

    /// What mkdtemp(3) makes this process's folder of.
    public static func template(in place: String) -> String { "\(place)/\(beginning(of: getpid()))XXXXXX" }

    /// Where the folder can be, the best place first.
    public static var usualPlaces: [String] {
        let named = ["XDG_RUNTIME_DIR", "TMPDIR"].compactMap { (name: String) in
            getenv(name).flatMap { safePlace(String(cString: $0)) }
        }
        return named.filter { (path: String) in access(path, W_OK) == 0 } + ["/tmp"]
    }

    /// The folder of that name without symbolic links, where nobody but this user and root can rename or remove what this user puts
    /// there; nil: somebody can. `su` and `sudo` may leave another user's XDG_RUNTIME_DIR in the environment: that user could put
    /// another server in the place of this one. With a link of that user's in its name, the link could lead elsewhere a moment later.
    public static func safePlace(_ path: String) -> String? {
        guard path.hasPrefix("/"), let found = realpath(path, nil) else { return nil }
        defer { free(found) }
        let whole = String(cString: found)
        var place = whole
        while true {
            var status = stat()
            guard lstat(place, &status) == 0, status.st_uid == geteuid() || status.st_uid == 0 else { return nil }
            let isShared = status.st_mode & (S_IWGRP | S_IWOTH) != 0 && status.st_mode & S_ISVTX == 0
            if isShared { return nil }
            if place == "/" { return whole }
            place = String(place[..<(place.lastIndex(of: "/") ?? place.startIndex)])
            if place.isEmpty { place = "/" }
        }
    }

    /// Removes what a process of this user has left behind that can not do so itself any more.
    public static func removeAll(of process: pid_t, in places: [String] = usualPlaces) {
        for place in places {
            for name in listFolder(place) where name.hasPrefix(beginning(of: process)) {
                let folder = "\(place)/\(name)"
                var status = stat()
                // Another user may have made one of that name.
                guard lstat(folder, &status) == 0, status.st_mode & S_IFMT == S_IFDIR, status.st_uid == geteuid() else {
                    continue
                }
                unlink("\(folder)/\(socket)")
                rmdir(folder)
            }
        }
    }
}
