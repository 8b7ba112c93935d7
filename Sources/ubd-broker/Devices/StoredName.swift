import Glibc
import SystemCalls

/// The name of a device's parking socket in systemd's store of descriptors: `ubd-ID-GENERATION`, both decimal.
struct StoredName: Hashable {
    let id: UInt32
    let generation: UInt64

    init(id: UInt32, generation: UInt64) {
        self.id = id
        self.generation = generation
    }

    init(_ device: ManagedDevice) { self.init(id: device.id, generation: device.info.generation) }

    /// nil for anything that `text` does not write.
    init?(_ text: Substring) {
        let parts = text.split(separator: "-", omittingEmptySubsequences: false)
        guard parts.count == 3, let id = UInt32(parts[1]), let generation = UInt64(parts[2]) else { return nil }
        self.init(id: id, generation: generation)
        if self.text != text { return nil }
    }

    var text: String { "ubd-\(id)-\(generation)" }
}

/// What systemd passed (sd_listen_fds(3)): the listening socket, and the parking sockets from its store.
struct PassedDescriptors: Equatable {
    var listener: Int32?
    var stored: [StoredName: [Int32]] = [:]

    /// The number of the first one (SD_LISTEN_FDS_START).
    static let first: Int32 = 3
    private static let most = 1 << 16

    init() {}

    /// `count` and `names`: LISTEN_FDS and LISTEN_FDNAMES. Without names one descriptor may come, the listening socket.
    init(count: String, names: String?) throws(StartupRefusal) {
        guard let number = Int(count), String(number) == count, (0...Self.most).contains(number) else {
            throw StartupRefusal(
                message: "systemd passed '\(count)' descriptors (LISTEN_FDS), which is no number", status: 1)
        }
        let names = names?.split(separator: ":", omittingEmptySubsequences: false)
        guard names != nil || number <= 1, number == 0 || (names?.count ?? 1) == number else {
            throw StartupRefusal(
                message: "systemd passed \(number) descriptors and \(names?.count ?? 0) names of them (LISTEN_FDNAMES)",
                status: 1)
        }
        var sockets = 0
        for place in 0..<number {
            let descriptor = Self.first + Int32(place)
            if let name = names.flatMap({ StoredName($0[place]) }) {
                stored[name, default: []].append(descriptor)
            } else {
                sockets += 1
                listener = descriptor
            }
        }
        guard sockets <= 1 else {
            throw StartupRefusal(message: "systemd passed \(sockets) sockets; one is expected", status: 1)
        }
    }

    /// Takes them from the environment, once. They are closed at an exec.
    static func take() throws -> PassedDescriptors {
        defer { for name in ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"] { unsetenv(name) } }
        func variable(_ name: String) -> String? { getenv(name).map { String(cString: $0) } }
        guard variable("LISTEN_PID") == String(getpid()), let count = variable("LISTEN_FDS") else {
            return PassedDescriptors()
        }
        let passed = try PassedDescriptors(count: count, names: variable("LISTEN_FDNAMES"))
        for descriptor in (passed.listener.map { [$0] } ?? []) + passed.stored.values.joined() {
            try call("fcntl") { fcntl(descriptor, F_SETFD, FD_CLOEXEC) }
        }
        return passed
    }
}
