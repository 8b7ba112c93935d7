import Glibc
import SystemCalls

/// The uids of workers: each is used by one worker at a time, and by nobody else.
struct WorkerUIDs {
    let range: Range<UInt32>
    private var taken: Set<UInt32> = []
    /// The next uid to try: a uid is reused as late as possible.
    private var next: UInt32

    /// The largest uid: for setresuid(2) the next one means "unchanged".
    static let last = UInt32.max - 1

    /// nil: `count` is 0, or some of the uids do not exist.
    init?(base: UInt32, count: UInt32) {
        let (end, overflow) = base.addingReportingOverflow(count)
        guard count > 0, !overflow, end - 1 <= WorkerUIDs.last else { return nil }
        range = base..<end
        next = base
    }

    var free: Int { range.count - taken.count }

    mutating func lease() -> UInt32? {
        guard taken.count < range.count else { return nil }
        while taken.contains(next) { advance() }
        let uid = next
        taken.insert(uid)
        advance()
        return uid
    }

    /// Marks a uid that a worker of an earlier broker uses. Returns false when it is outside the range or in use.
    mutating func adopt(_ uid: UInt32) -> Bool {
        range.contains(uid) && taken.insert(uid).inserted
    }

    /// Call it only after the worker's pidfd has fired: until then a process with this uid exists.
    mutating func giveBack(_ uid: UInt32) {
        taken.remove(uid)
    }

    private mutating func advance() {
        next = next + 1 == range.upperBound ? range.lowerBound : next + 1
    }

    /// Another user of a uid in the range, as text; nil when there is none. `ours`: uids of workers.
    func collision(except ours: Set<UInt32>) -> String? {
        do throws(SystemError) {
            if let name = try accountInRange() { return "user \(name)" }
        } catch { return "perhaps a user (\(error))" }
        for file in ["/etc/subuid", "/etc/subgid"] {
            do throws(SystemError) {
                if try overlapsSubordinates(file) { return "a range in \(file)" }
            } catch { return "perhaps a range in \(file), which cannot be read (\(error))," }
        }
        do throws(SystemError) {
            return try processes(except: ours).first.map { "process \($0.pid) (uid \($0.uid))" }
        } catch { return "perhaps a process (\(error))" }
    }

    /// - Throws: the errno of getpwent(3) when it lacked memory or descriptors. (At the end of the list, too, errno may be
    ///   set to something else.)
    private func accountInRange() throws(SystemError) -> String? {
        setpwent()
        defer { endpwent() }
        while true {
            errno = 0
            guard let entry = getpwent() else { break }
            if range.contains(entry.pointee.pw_uid) { return String(cString: entry.pointee.pw_name) }
        }
        let error = SystemError("list the host's users", errno)
        if error.isShortage { throw error }
        return nil
    }

    /// A range of the file overlaps this one. Lines are "name:first:count" (subuid(5)); a missing file has none.
    ///
    /// - Throws: the errno of open(2) or read(2); EFBIG for more than 1 MiB.
    func overlapsSubordinates(_ file: String) throws(SystemError) -> Bool {
        let bytes: [UInt8]
        do { bytes = try readFile(file) } catch {
            if error.errno == ENOENT { return false }
            throw error
        }
        return String(decoding: bytes, as: UTF8.self).split(separator: "\n").contains { line in
            let fields = line.split(separator: ":", omittingEmptySubsequences: false)
            guard fields.count == 3, let first = UInt64(fields[1]), let count = UInt64(fields[2]), count > 0 else {
                return false
            }
            let (end, overflow) = first.addingReportingOverflow(count)
            return first < UInt64(range.upperBound) && (overflow || end > UInt64(range.lowerBound))
        }
    }

    /// Processes with a uid in the range that is not in `ours`.
    ///
    /// - Throws: when a process cannot be looked at: it may have such a uid.
    func processes(
        except ours: Set<UInt32>, proc: String = "/proc"
    ) throws(SystemError) -> [(pid: Int32, uid: UInt32, status: ProcessStatus)] {
        var found: [(pid: Int32, uid: UInt32, status: ProcessStatus)] = []
        for pid in try runningProcesses(proc) {
            do throws(SystemError) {
                let status = try ProcessStatus(of: "\(pid)", proc: proc)
                let uid = status.uids.first { range.contains($0) && !ours.contains($0) }
                if let uid { found.append((pid, uid, status)) }
            } catch {
                if !error.saysProcessIsGone { throw error }
            }
        }
        return found
    }
}

/// The pids in /proc.
func runningProcesses(_ proc: String = "/proc") throws(SystemError) -> [Int32] {
    try namesInFolder(proc).compactMap { Int32($0) }
}
