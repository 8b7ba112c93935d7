import BrokerInterface
import CShims
import Glibc
import SystemCalls

/// The end of the host: deletes every unused device, whoever owns it. A device in use keeps serving, since a file
/// system or driver of the host needs it until that one ends (ubd-shutdown has ended what it could).
///
/// The checks are those of a user's `ubd del` without force: mounts, swap, devices on top, and from Linux 7.0 on open
/// files. A device is deleted by force only if a program has it open and its worker has completed no request for a
/// while: the program waits in vain, and the file system of its file would stay busy.
final class TakeDown {
    private let broker: Broker
    /// Milliseconds for all devices together. Later ones are left to the host's final SIGKILL of all processes.
    private let deadline: Int
    /// Milliseconds without a completed request after which a worker with requests counts as silent.
    private let silence: Int
    private var unfinished = 0
    private var left: [String] = []
    private var done: (() -> Void)?

    init(_ broker: Broker, deadline: Int = 20_000, silence: Int = 10_000) {
        self.broker = broker
        self.deadline = deadline
        self.silence = silence
    }

    /// `done` is called once, at the latest at the deadline.
    func begin(_ done: @escaping () -> Void) {
        self.done = done
        let devices = broker.devices.values.sorted { $0.id < $1.id }
        unfinished = devices.count
        if devices.isEmpty { return broker.loop.later { [self] in finish() } }
        broker.loop.after(milliseconds: deadline) { [self] in finish() }
        let root = PeerCredentials(pid: getpid(), uid: 0, gid: 0, groups: [])
        for device in devices { delete(device, root) }
    }

    private func delete(_ device: ManagedDevice, _ root: PeerCredentials) {
        // A device that an earlier broker left incomplete is being undone already.
        if let teardown = device.teardown { return teardown.join { [self] error in ended(device, error) } }
        let done = broker.requestsDone(device.id)
        broker.delete(DeleteRequest(id: device.id), peer: root) { [self] error in
            guard case .busy(_, _, _, BrokerAPI.openSomewhere)? = error else { return ended(device, error) }
            broker.loop.after(milliseconds: silence) { [self] in
                guard let done, broker.requestsDone(device.id) == done,
                    let waiting = broker.requestsInFlight(device.id),
                    waiting > 0
                else { return ended(device, error) }
                Log.warning(
                    "worker-silent", ("device", "\(device.id)"), ("owner", "\(device.owner)"),
                    ("requests", "\(waiting)"))
                broker.delete(DeleteRequest(id: device.id, force: true), peer: root) { [self] error in
                    ended(device, error)
                }
            }
        }
    }

    /// The device is deleted, or left for the reason `error`.
    private func ended(_ device: ManagedDevice, _ error: InterfaceError?) {
        if let error {
            left.append("\(device.id)")
            Log.warning(
                "left-in-use", ("device", "\(device.id)"), ("owner", "\(device.owner)"), ("why", error.message))
        }
        unfinished -= 1
        if unfinished == 0 { finish() }
    }

    private func finish() {
        guard let done else { return }
        self.done = nil
        Log.notice(
            "take-down", ("left", left.isEmpty ? "none" : left.joined(separator: " ")), ("late", "\(unfinished)"))
        done()
    }
}

/// Marks workers that are still needed when everything else is killed. systemd spares processes whose control group has
/// this mark, from version 255 on (SurviveFinalKillSignal= in systemd.unit(5)). Earlier versions spare only root's
/// processes.
enum Survivors {
    static func mark(_ pids: [Int32]) {
        for pid in pids {
            guard let text = try? readFile("/proc/\(pid)/cgroup"), let group = group(of: text) else { continue }
            _ = setxattr("/sys/fs/cgroup" + group, "user.survive_final_kill_signal", "1", 1, 0)
        }
    }

    /// The path in the unified hierarchy; nil for the root group, which all processes share, and without such a
    /// hierarchy.
    static func group(of bytes: [UInt8]) -> String? {
        for line in String(decoding: bytes, as: UTF8.self).split(separator: "\n") where line.hasPrefix("0::/") {
            return line.count > 4 ? String(line.dropFirst(3)) : nil
        }
        return nil
    }
}
