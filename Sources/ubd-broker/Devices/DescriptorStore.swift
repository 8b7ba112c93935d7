import Glibc
import SystemCalls

/// systemd's store of this service's descriptors (FDSTORE in sd_notify(3)). It keeps the parking sockets of devices, and so
/// the clients' files in them, when broker and worker die together.
///
/// The last close of a file may block, and of a stored one it may happen in PID 1. So the broker stores a socket only
/// - where systemd closes stored descriptors outside of PID 1. `$FDSTORE` says so: systemd 254 brought the variable;
/// - when a worker has examined the files in it, and
/// - when the store has room: PID 1 itself would close what it can't store.
///
/// While a socket is in the store, no close by the broker is the last one.
final class DescriptorStore {
    private enum Order {
        case keep(StoredName, descriptor: () -> Int32?)
        case drop(StoredName)
    }

    private let loop: EventLoop
    /// The most descriptors in the store; 0 when nothing is stored.
    let capacity: Int
    /// Sends a message, with a descriptor. False: systemd's socket has no room.
    private let tell: (_ message: String, _ descriptor: Int32?) -> Bool
    /// What an earlier broker stored and no device has taken yet.
    private var passed: [StoredName: [Int32]]
    /// What is in the store, or is about to be.
    private(set) var names: Set<StoredName>
    /// Messages that systemd has not got yet, in their order.
    private var orders: [Order] = []
    private var isWaiting = false
    private var saidFull = false

    /// Milliseconds until a message is tried again.
    private static let again = 50

    init(
        loop: EventLoop, capacity: Int, passed: [StoredName: [Int32]] = [:],
        tell: @escaping (_ message: String, _ descriptor: Int32?) -> Bool = { message, descriptor in
            Notification.send(message, waiting: false, descriptor: descriptor)
        }
    ) {
        self.loop = loop
        self.capacity = capacity
        self.passed = passed
        self.tell = tell
        names = Set(passed.keys)
    }

    /// The room of the store, out of the variables FDSTORE and NOTIFY_SOCKET; 0 when anything is unclear.
    static func capacity(_ environment: (String) -> String?) -> Int {
        guard environment("NOTIFY_SOCKET") != nil, let text = environment("FDSTORE"), let number = Int(text),
            String(number) == text, number > 0
        else { return 0 }
        return number
    }

    /// Stores a device's parking socket, unless it is there. `descriptor` tells its number when the message can be sent.
    func keep(_ name: StoredName, _ descriptor: @escaping () -> Int32?) {
        guard capacity > 0, !names.contains(name) else { return }
        guard names.count < capacity else {
            if !saidFull {
                Log.warning(
                    "store-full", ("device", "\(name.id)"), ("room", "\(capacity)"),
                    (
                        "remedy",
                        "raise FileDescriptorStoreMax; without room a device needs 'ubd recover' when broker and worker die together"
                    ))
            }
            saidFull = true
            return
        }
        names.insert(name)
        orders.append(.keep(name, descriptor: descriptor))
        flush()
    }

    /// Takes a device's socket out of the store, and closes what was passed of it: the store still has it then.
    func drop(_ name: StoredName) {
        for descriptor in passed.removeValue(forKey: name) ?? [] { close(descriptor) }
        guard names.remove(name) != nil else { return }
        saidFull = false
        orders.append(.drop(name))
        flush()
    }

    /// The socket of this device that an earlier broker stored. It must have the recorded inode.
    func take(_ name: StoredName, inode: UInt64) -> FileDescriptor? {
        guard let found = passed[name]?.first(where: { Self.inode(of: $0) == inode }) else { return nil }
        for descriptor in passed.removeValue(forKey: name) ?? [] where descriptor != found { close(descriptor) }
        return FileDescriptor(owning: found)
    }

    /// After all records were read. `devices` gives the inode of a device's parking socket: nil when there is no such device,
    /// and 0 when it has none yet but may take the stored one later. Returns sockets that nobody needs, which the caller
    /// must let go.
    func settle(_ devices: (StoredName) -> UInt64?) -> [Int32] {
        var needless: [Int32] = []
        for (name, descriptors) in passed {
            let wanted = devices(name)
            if wanted == 0 { continue }
            passed[name] = nil
            if let wanted, descriptors.allSatisfy({ Self.inode(of: $0) == wanted }) {
                // The device has the same socket.
                for descriptor in descriptors { close(descriptor) }
            } else {
                needless += descriptors
                drop(name)
            }
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
            guard send(order) else {
                isWaiting = true
                loop.after(milliseconds: Self.again) { [weak self] in
                    self?.isWaiting = false
                    self?.flush()
                }
                return
            }
            orders.removeFirst()
        }
    }

    private func send(_ order: Order) -> Bool {
        switch order {
        case .keep(let name, let descriptor):
            guard let descriptor = descriptor() else { return true }
            // Without FDPOLL=0 systemd drops a socket whose directions are shut down.
            return tell("FDSTORE=1\nFDNAME=\(name.text)\nFDPOLL=0", descriptor)
        case .drop(let name): return tell("FDSTOREREMOVE=1\nFDNAME=\(name.text)", nil)
        }
    }
}

extension Broker {
    /// Lets systemd keep the files of a device that serves. Connections to a server are of no use to another worker.
    func storeInputs(of device: ManagedDevice) {
        guard device.step == .live, device.info.state == .live, device.parking != nil,
            device.launch?.target.survival == .inputs, device.info.recovery != .none
        else { return }
        descriptorStore?.keep(StoredName(device)) { [weak device] in device?.parking?.raw }
    }

    func unstoreInputs(of device: ManagedDevice) { descriptorStore?.drop(StoredName(device)) }

    /// Gives a device the socket that systemd has kept for it.
    func takeStoredInputs(of device: ManagedDevice) {
        guard device.parking == nil, device.launch?.target.survival == .inputs, let inode = device.sockets?.parking,
            let socket = descriptorStore?.take(StoredName(device), inode: inode)
        else { return }
        device.parking = consume socket
        Log.notice("file-stored", ("device", "\(device.id)"), ("owner", "\(device.owner)"))
    }

    /// After the comparison with the kernel: lets go of what no device needs.
    func settleStoredInputs() {
        let needless = descriptorStore?.settle { [self] name in
            guard let device = devices[name.id], device.info.generation == name.generation else { return nil }
            return (try? device.parking?.status()).map { UInt64($0.st_ino) } ?? 0
        }
        for socket in needless ?? [] {
            undertaker.letGo(FileDescriptor(owning: socket), owner: 0, isStranger: true)
        }
    }
}
