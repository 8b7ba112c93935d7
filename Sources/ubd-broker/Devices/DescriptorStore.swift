import Glibc
import SystemCalls

/// systemd's store of this service's descriptors (FDSTORE in sd_notify(3)). It keeps the parking sockets of devices, and so
/// the clients' files in them, when broker and worker die together.
///
/// The last close of a file may block, and of a stored one it may happen in PID 1. So the broker stores a socket only
/// - where systemd offers a store. ubd's units ask for one from systemd 257 on, which closes stored descriptors outside of
///   its main thread (`ubd-descriptor-store` decides that); before 254 the broker stores nothing whatever the unit says;
/// - when a worker has examined the files in it, and
/// - when the store has room: PID 1 itself would close what it can't store.
///
/// What is passed to the next broker is trusted only as far as the record of a device confirms it. What no device needs goes
/// to the undertaker, since its close might be the last one after all.
final class DescriptorStore {
    /// What systemd offers.
    struct Offer: Equatable {
        /// The most descriptors; 0 when there is no store.
        var room = 0
        /// Why there is none; nil when there is one.
        var problem: String?
    }

    /// The parking socket that a device should have.
    struct Wanted {
        /// Its inode, by the device's record.
        let inode: UInt64
        /// The device has it, from its worker.
        let isHeld: Bool
    }

    private enum Order {
        case keep(StoredName, descriptor: () -> Int32?)
        /// `name` as the message has it: a stored one of ours, or one that we did not give.
        case drop(name: String)
    }

    private let loop: EventLoop
    let offer: Offer
    /// Sends a message, with a descriptor. Returns what prevented it.
    private let tell: (_ message: String, _ descriptor: Int32?) -> SystemError?
    /// What an earlier broker stored and no device has taken yet.
    private var passed: [StoredName: [Int32]]
    /// What is in the store, or is about to be.
    private(set) var names: Set<StoredName>
    /// What the kernel did not send to systemd: it is not tried again at each change of the device.
    private var refused: Set<StoredName> = []
    /// Messages that systemd has not got yet, in their order.
    private var orders: [Order] = []
    private var isWaiting = false
    private var saidFull = false

    /// Milliseconds until a message is tried again.
    private static let again = 50
    /// Errors that pass: systemd's socket or the host has no room.
    private static let passing: Set<Int32> = [EAGAIN, EMFILE, ENFILE, ENOBUFS, ENOMEM, EINTR]
    private static let consequence = "the device needs 'ubd recover' when broker and worker die together"

    init(
        loop: EventLoop, offer: Offer, passed: [StoredName: [Int32]] = [:],
        tell: @escaping (_ message: String, _ descriptor: Int32?) -> SystemError? = { message, descriptor in
            Notification.attempt(message, waiting: false, descriptor: descriptor)
        }
    ) {
        self.loop = loop
        self.offer = offer
        self.passed = passed
        self.tell = tell
        names = Set(passed.keys)
    }

    /// Stores a device's parking socket, unless it is there. `descriptor` tells its number when the message can be sent.
    func keep(_ name: StoredName, _ descriptor: @escaping () -> Int32?) {
        guard offer.room > 0, !names.contains(name), !refused.contains(name) else { return }
        guard names.count < offer.room else {
            if !saidFull {
                Log.warning(
                    "store-full", ("device", "\(name.id)"), ("room", "\(offer.room)"),
                    ("remedy", "raise FileDescriptorStoreMax; without room \(Self.consequence)"))
            }
            saidFull = true
            return
        }
        names.insert(name)
        orders.append(.keep(name, descriptor: descriptor))
        flush()
    }

    /// Takes a device's socket out of the store. Returns what was passed of it, which the caller must let go.
    func drop(_ name: StoredName) -> [Int32] {
        let left = passed.removeValue(forKey: name) ?? []
        refused.remove(name)
        guard names.remove(name) != nil else { return left }
        saidFull = false
        let pending = orders.firstIndex {
            if case .keep(name, _) = $0 { true } else { false }
        }
        if let pending {
            // systemd never heard of it.
            orders.remove(at: pending)
        } else {
            orders.append(.drop(name: name.text))
            flush()
        }
        return left
    }

    /// Takes what we did not store out of the store.
    func dropForeign(_ name: String) {
        orders.append(.drop(name: name))
        flush()
    }

    /// The socket of this device that an earlier broker stored. It must have the recorded inode.
    func take(_ name: StoredName, inode: UInt64) -> FileDescriptor? {
        guard let place = passed[name]?.firstIndex(where: { Self.inode(of: $0) == inode }),
            let found = passed[name]?.remove(at: place)
        else { return nil }
        // What is left under this name, if anything, is no device's.
        if passed[name]?.isEmpty == true { passed[name] = nil }
        return FileDescriptor(owning: found)
    }

    /// After all records were read. `wanted` gives the socket of a device; nil when there is no such device, or it needs
    /// none. Returns sockets that nobody needs, which the caller must let go.
    func settle(_ wanted: (StoredName) -> Wanted?) -> [Int32] {
        var needless: [Int32] = []
        for (name, descriptors) in passed {
            let wanted = wanted(name)
            let fitting = descriptors.filter { wanted != nil && Self.inode(of: $0) == wanted?.inode }
            needless += descriptors.filter { !fitting.contains($0) }
            passed[name] = fitting
            // A name leaves the store with all that has it. A device that has its socket can store it again.
            if fitting.isEmpty || fitting.count < descriptors.count && wanted?.isHeld == true { needless += drop(name) }
            guard wanted?.isHeld == true else { continue }
            // The device has the same socket, so this close is not the last one.
            for descriptor in passed.removeValue(forKey: name) ?? [] { close(descriptor) }
        }
        return needless
    }

    private static func inode(of descriptor: Int32) -> UInt64? {
        var status = stat()
        guard fstat(descriptor, &status) == 0, status.st_mode & S_IFMT == S_IFSOCK else { return nil }
        return UInt64(status.st_ino)
    }

    private func flush() {
        while !isWaiting, let order = orders.first {
            if let error = send(order) {
                if Self.passing.contains(error.errno) { return tryLater() }
                refuse(order, error)
            }
            orders.removeFirst()
        }
    }

    private func tryLater() {
        isWaiting = true
        loop.after(milliseconds: Self.again) { [weak self] in
            self?.isWaiting = false
            self?.flush()
        }
    }

    private func send(_ order: Order) -> SystemError? {
        switch order {
        case .keep(let name, let descriptor):
            guard let descriptor = descriptor() else {
                names.remove(name)
                return nil
            }
            // Without FDPOLL=0 systemd drops a socket whose directions are shut down.
            return tell("FDSTORE=1\nFDNAME=\(name.text)\nFDPOLL=0", descriptor)
        case .drop(let name): return tell("FDSTOREREMOVE=1\nFDNAME=\(name)", nil)
        }
    }

    /// For example ETOOMANYREFS: the client has put sockets into the parking socket, nested too deeply to be sent.
    private func refuse(_ order: Order, _ error: SystemError) {
        guard case .keep(let name, _) = order else { return }
        names.remove(name)
        refused.insert(name)
        Log.warning("not-stored", ("device", "\(name.id)"), ("why", "\(error)"), ("what", Self.consequence))
    }
}

extension DescriptorStore.Offer {
    /// Out of the variables FDSTORE and NOTIFY_SOCKET. There is no store when anything is unclear.
    init(_ environment: (String) -> String?) {
        guard environment("NOTIFY_SOCKET") != nil else {
            self.init(problem: "systemd did not start the broker")
            return
        }
        guard let text = environment("FDSTORE") else {
            self.init(problem: "systemd offers no store: FileDescriptorStoreMax is not set, or systemd is too old")
            return
        }
        guard let number = Int(text), String(number) == text, number > 0 else {
            self.init(problem: "systemd's FDSTORE is '\(text.prefix(20))', which is not a number above 0")
            return
        }
        self.init(room: min(number, Self.mostNames))
    }

    /// systemd passes all names in one environment variable, which execve(2) takes up to 128 KiB (MAX_ARG_STRLEN). A name has up to
    /// 30 bytes with its colon, so more than 4369 would keep the next broker from starting.
    private static let mostNames = 4096
}
