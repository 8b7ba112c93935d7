import BrokerInterface
import Glibc
import SystemCalls

/// The end of a mount whose server may still have to write: what it held is in the device's file then, or the user is told.
struct MountEnd {
    let device: Device
    /// As typed.
    let directory: String
    let client: BrokerClient

    private var environment: CommandEnvironment { client.environment }
    private var name: String { device.link ?? device.node }

    /// A mount ends before its server has written what it holds; the server closes the device when it has.
    ///
    /// - Parameter servers: their pids.
    func wait(for servers: [String]) throws(CommandFailure) {
        let deadline = Deadline(seconds: environment.mountSeconds)
        let start = monotonicNanoseconds()
        defer { environment.console.progress(nil) }
        while let server = servers.first(where: { DeviceOpener.has($0, device.node) }) {
            let server = DeviceOpener.name(of: server)
            guard !deadline.hasPassed else {
                throw CommandFailure(
                    .busy, "Busy",
                    "\(directory) is unmounted, and \(server) still has \(name) open after \(deadline.seconds) s, so the device stays",
                    remedy: "wait for its end, then 'ubd del -n \(device.id)'")
            }
            let waited = (monotonicNanoseconds() - start) / 1_000_000_000
            if waited > 0 { environment.console.progress("ubd: waiting for \(server) to write, \(waited) s …") }
            environment.pause(20)
        }
    }

    /// Writes to the file what the kernel holds. The kernel does that itself when a server closes the device, which is not seen in
    /// /proc any more, and gives nobody else the device for itself meanwhile.
    ///
    /// - Parameter hadServer: one was seen, and so may be on its way out.
    func flush(hadServer: Bool) throws(CommandFailure) {
        let deadline = Deadline(seconds: hadServer ? environment.mountSeconds : 0)
        while true {
            do throws(CommandFailure) {
                return try DeleteCommand.refuseUse(of: device, client, doing: "surely have all that was written")
            } catch {
                if error.status == .busy, !deadline.hasPassed { continue }
                // It is gone, and its number perhaps another's.
                guard try client.list(id: device.id).first?.generation == device.generation else { return }
                var failure = error
                failure.message = "\(directory) is unmounted; \(error.message)"
                throw failure
            }
        }
    }

    /// A failure when requests that wrote to the device have failed, or nobody can tell. A server that is told of it by the kernel
    /// tells nobody: fuse2fs gives programs status 0 for what its device has no room for.
    func lostWrites(isMade: Bool) throws(CommandFailure) -> CommandFailure? {
        guard !device.readOnly else { return nil }
        let counts: Counts?
        do {
            counts = try client.stats(id: device.id).devices.first { $0.generation == device.generation }?.total
        } catch {
            guard error.status == .noSuchDevice else { throw error }
            counts = nil
        }
        return Self.lostWrites(counts, directory, name, file: MountMark.removed(device.file ?? name), isMade: isMade)
    }

    static func lostWrites(
        _ counts: Counts?, _ directory: String, _ name: String, file: String, isMade: Bool
    ) -> CommandFailure? {
        guard let counts else {
            return CommandFailure(
                .failed, "NotKnown",
                "\(directory) is unmounted, and nobody can tell whether all that was written is in \(file)",
                remedy: "compare what you have written there")
        }
        let errors = [counts.write, counts.flush, counts.writeZeroes].map(\.errors).reduce(0) { $0 &+ $1 }
        guard errors > 0 else { return nil }
        return CommandFailure(
            .failed, "NotWritten",
            "\(directory) is unmounted, and \(errors) requests that wrote to \(name) have failed"
                + (isMade ? "" : " since it was added") + ": some of what was written is not in \(file)",
            remedy: "make room where it lies, see 'df'; then check the file system, and write the files again")
    }
}
