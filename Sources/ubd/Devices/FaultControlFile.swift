import BrokerInterface
import Glibc
import SystemCalls
import Targets

/// The control file of a fault device: in it `ubd` leaves plans for the worker, and the worker its state and its log
/// (`FaultControl`). It is the user's own file, so no broker is asked, and the worker reads it as it would a stranger's.
struct FaultControlFile: ~Copyable {
    private let file: FileDescriptor
    /// The folder that it is in or gets into.
    private let folder: String

    var raw: Int32 { file.raw }

    /// Where it may be, the first one that can be used. All of them are local, as the worker wants it. The device outlives its user's
    /// last logout, which removes the runtime folder and what she has in /dev/shm (logind.conf(5), RemoveIPC).
    private static var folders: [String] {
        let runtime = getenv("XDG_RUNTIME_DIR").map { String(cString: $0) } ?? ""
        return ["/tmp", "/dev/shm"].map { "\($0)/ubd-fault-\(geteuid())" }
            + (runtime.hasPrefix("/") ? [runtime + "/ubd-fault"] : [])
    }

    private static func name(_ id: UInt32) -> String { "device-\(id)" }

    /// Makes one without a name, with this plan.
    static func make(_ plan: FaultPlan) throws(CommandFailure) -> FaultControlFile {
        var last: SystemError?
        for folder in folders {
            do throws(SystemError) {
                try makeFolder(folder)
                let file = try FileDescriptor.open(folder, O_TMPFILE | O_RDWR | O_CLOEXEC, mode: 0o600)
                try call("ftruncate of the control file") { ftruncate(file.raw, off_t(FaultControl.bytes)) }
                let control = FaultControlFile(file: file, folder: folder)
                try control.write(plan, sequence: 1, generation: 0)
                return control
            } catch { last = error }
        }
        throw CommandFailure(
            .failed, "ControlFile",
            "no control file can be made in \(folders.joined(separator: " or "))\(last.map { " (\($0))" } ?? "")",
            remedy: "make room in /tmp, or set XDG_RUNTIME_DIR to a folder that is yours alone")
    }

    /// Nobody else may put files there, or replace it.
    private static func makeFolder(_ folder: String) throws(SystemError) {
        if mkdir(folder, 0o700) != 0, errno != EEXIST { throw SystemError("mkdir \(folder)", errno) }
        var status = stat()
        try call("lstat \(folder)") { lstat(folder, &status) }
        guard status.st_mode & S_IFMT == S_IFDIR, status.st_uid == geteuid(), status.st_mode & 0o77 == 0 else {
            throw SystemError("use \(folder), which others can change", EPERM)
        }
    }

    /// Gives it the name by which `ubd fault` finds it. The name of a device that is gone makes room.
    func keep(for device: Device, _ plan: FaultPlan) throws(SystemError) {
        try write(plan, sequence: 1, generation: device.generation)
        let path = "\(folder)/\(FaultControlFile.name(device.id))"
        FaultControlFile.remove(device.id)
        try call("link \(path)") { linkat(AT_FDCWD, "/proc/self/fd/\(file.raw)", AT_FDCWD, path, AT_SYMLINK_FOLLOW) }
    }

    /// The device is gone.
    static func remove(_ id: UInt32) {
        for folder in folders { unlink("\(folder)/\(name(id))") }
    }

    /// The file of this device.
    static func find(_ device: Device) throws(CommandFailure) -> FaultControlFile {
        for folder in folders {
            guard (try? makeFolder(folder)) != nil,
                let file = try? FileDescriptor.open("\(folder)/\(name(device.id))", O_RDWR | O_NOFOLLOW | O_CLOEXEC)
            else { continue }
            let control = FaultControlFile(file: file, folder: folder)
            if control.words(FaultControl.planOffset).withUnsafeBufferPointer({
                FaultControl.generation($0.baseAddress!) == device.generation
            }) {
                return control
            }
        }
        throw CommandFailure(
            .failed, "ControlFile",
            "the control file of device \(device.id) is not in \(folders.joined(separator: " or "))",
            remedy: "run this as the user who added the device")
    }

    // MARK: Content

    /// The words of a block; zeros where the file ends.
    private func words(_ offset: Int, count: Int = FaultControl.words) -> [UInt64] {
        var words = [UInt64](repeating: 0, count: count)
        _ = words.withUnsafeMutableBytes { pread(file.raw, $0.baseAddress, $0.count, off_t(offset)) }
        return words
    }

    private func write(_ plan: FaultPlan, sequence: UInt64, generation: UInt64) throws(SystemError) {
        let words = FaultControl.encode(plan, sequence: sequence, generation: generation)
        let count = words.withUnsafeBytes { pwrite(file.raw, $0.baseAddress, $0.count, off_t(FaultControl.planOffset)) }
        guard count == FaultControl.block else {
            throw SystemError("write of the control file", count < 0 ? errno : ENOSPC)
        }
    }

    /// The plan that lies there.
    func plan() throws(CommandFailure) -> FaultPlan {
        let found = words(FaultControl.planOffset).withUnsafeBufferPointer { FaultControl.plan($0.baseAddress!) }
        guard let found else {
            throw CommandFailure(
                .failed, "ControlFile", "the control file has no plan, or a damaged one",
                remedy: "let nothing else write to it; delete the device and add it again")
        }
        return found
    }

    /// Gives the worker a plan, and waits until it is in force and a power cut is over. Returns the state after that.
    func obey(
        _ plan: FaultPlan, _ device: Device, _ environment: CommandEnvironment
    ) throws(CommandFailure) -> FaultState {
        let sequence =
            words(FaultControl.planOffset)
            .withUnsafeBufferPointer { FaultControl.sequence($0.baseAddress!) ?? 0 } &+ 1
        do { try write(plan, sequence: sequence, generation: device.generation) } catch {
            throw CommandFailure(.failed, "ControlFile", "\(error)", remedy: "make room where the control file is")
        }
        let deadline = Deadline(seconds: environment.callSeconds)
        while !deadline.hasPassed {
            let state = FaultState(words(FaultControl.stateOffset))
            if state.sequence == sequence, state.power != .goingOff { return state }
            if state.rejected == sequence { break }
            environment.pause(5)
        }
        throw CommandFailure(
            .failed, "NoAnswer",
            "the worker of device \(device.id) did not take the plan in \(environment.callSeconds) s",
            remedy: "see 'ubd list -n \(device.id)'; while another process sends a plan, try again")
    }

    /// The records that the log still has, oldest first.
    func log() -> [FaultRecord] {
        let words = words(FaultControl.logOffset, count: FaultControl.records * FaultControl.recordWords)
        return stride(from: 0, to: words.count, by: FaultControl.recordWords)
            .compactMap { FaultRecord(words[$0..<($0 + FaultControl.recordWords)]) }
            .sorted { $0.number < $1.number }
    }
}
