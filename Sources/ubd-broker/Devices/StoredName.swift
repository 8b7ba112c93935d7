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
    /// Something in the store that has no name of ours.
    struct Foreign: Equatable {
        let name: String
        let descriptor: Int32
    }

    var listener: Int32?
    var stored: [StoredName: [Int32]] = [:]
    var foreign: [Foreign] = []

    /// The number of the first one (SD_LISTEN_FDS_START).
    static let first: Int32 = 3
    private static let most = 1 << 16

    init() {}

    /// `count` and `names`: LISTEN_FDS and LISTEN_FDNAMES. Without names one descriptor may come, the listening socket.
    /// `listens`: whether a descriptor is a listening socket.
    init(count: String, names: String?, listens: (Int32) -> Bool) throws(StartupRefusal) {
        guard let number = Int(count), String(number) == count, (0...Self.most).contains(number) else {
            throw StartupRefusal(
                message: "systemd passed '\(count.prefix(20))' descriptors (LISTEN_FDS), which is no number", status: 1)
        }
        let names = names?.split(separator: ":", omittingEmptySubsequences: false)
        guard names != nil || number <= 1, number == 0 || (names?.count ?? 1) == number else {
            throw StartupRefusal(
                message: "systemd passed \(number) descriptors and \(names?.count ?? 0) names of them (LISTEN_FDNAMES)",
                status: 1)
        }
        for place in 0..<number {
            let descriptor = Self.first + Int32(place)
            let text = names?[place] ?? ""
            if let name = StoredName(text) {
                stored[name, default: []].append(descriptor)
            } else {
                foreign.append(Foreign(name: String(text), descriptor: descriptor))
            }
        }
        try chooseListener(listens)
    }

    /// The socket unit may give any name to the listening socket.
    private mutating func chooseListener(_ listens: (Int32) -> Bool) throws(StartupRefusal) {
        let candidates = foreign.count > 1 ? foreign.filter { listens($0.descriptor) } : foreign
        guard candidates.count <= 1, candidates.count == 1 || foreign.isEmpty else {
            throw StartupRefusal(message: "systemd passed \(foreign.count) sockets; one is expected", status: 1)
        }
        listener = candidates.first?.descriptor
        foreign.removeAll { $0.descriptor == listener }
    }

    /// Takes them from the environment, once. They are closed at an exec.
    static func take() throws -> PassedDescriptors {
        defer { for name in ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"] { unsetenv(name) } }
        func variable(_ name: String) -> String? { getenv(name).map { String(cString: $0) } }
        guard variable("LISTEN_PID") == String(getpid()), let count = variable("LISTEN_FDS") else {
            return PassedDescriptors()
        }
        let passed = try PassedDescriptors(
            count: count, names: variable("LISTEN_FDNAMES"), listens: RunFolder.listens)
        for descriptor in (passed.listener.map { [$0] } ?? []) + passed.stored.values.joined()
            + passed.foreign.map(\.descriptor)
        {
            try call("fcntl") { fcntl(descriptor, F_SETFD, FD_CLOEXEC) }
        }
        return passed
    }
}
