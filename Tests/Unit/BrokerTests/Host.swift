import BrokerInterface
import Glibc
import KernelABI
import Policy
import SystemCalls
import Targets
import Testing
import WorkerProtocol

@testable import ubd_broker

/// A broker in a temporary folder with a fake kernel and fake workers.
final class Host {
    static let alice = PeerCredentials(pid: 100, uid: 1000, gid: 1000, groups: [50])
    static let root = PeerCredentials(pid: 99, uid: 0, gid: 0, groups: [])
    static let bob = PeerCredentials(pid: 101, uid: 1001, gid: 1001, groups: [50])
    static let mallory = PeerCredentials(pid: 102, uid: 1002, gid: 1002, groups: [])

    let folder: String
    let loop: EventLoop
    let kernel: FakeKernel
    let broker: Broker
    private(set) var workers: [FakeWorker] = []
    var fault: FakeWorker.Fault?
    var interfere: ((FakeWorker.Moment, FakeWorker) throws(SystemError) -> Bool)?
    /// The error with which starting a worker fails.
    var startError: Int32?
    /// The fault of the next worker, when it differs from that of the others.
    var faultOf: ((WorkerLaunch) -> FakeWorker.Fault?)?
    /// The program that has the worker program's name now.
    var installed: WorkerProgram
    var geometry = Geometry(size: 1 << 20, logicalBlock: 512, physicalBlock: 4096)
    var failure = WorkerFailure(.fileIsDirectory)
    var sandboxProblem: String?
    /// Runs while the broker verifies a stopped worker.
    var whileVerified: (() -> Void)?
    /// The users of the device that is asked about.
    var holding = Holding.free
    /// Runs between that question and its answer.
    var whileAsked: (() -> Void)?
    /// nil: the host has none.
    let groups: FakeGroups?
    /// The answer of the block layer.
    var requestsInFlight: Int? = 0
    var requestsDone: () -> Int? = { 0 }
    /// Runs when it is asked for the requests under way.
    var whileCounted: (() -> Void)?
    /// Nanoseconds by which the clock of its recoveries is ahead.
    var clockAdvance: UInt64 = 0
    var isProgramMissing = false
    /// The error with which taking over a worker fails.
    var adoptError: Int32?

    /// Values that the closures of `Broker.Surroundings` need before `self` exists.
    private final class Late {
        weak var host: Host?
    }

    init(
        reusing old: String? = nil, policy: String? = nil, uids: UInt32 = 8, kernelLog: KernelLog? = nil,
        mayChown: Bool = true, takesDown: Bool = false, accounts: Accounts = Accounts(), groups: FakeGroups? = nil,
        release: String = "7.3.4", allowsBadKernel: Bool = false, store: ((EventLoop) -> DescriptorStore)? = nil
    ) throws {
        self.groups = groups
        folder = try old ?? Host.temporaryFolder()
        installed = try Host.program()
        loop = try EventLoop()
        let late = Late()
        let loop = loop
        let kernel = FakeKernel(loop: loop, nodes: folder)
        self.kernel = kernel
        var configuration = Configuration()
        configuration.runFolder = folder
        configuration.uidBase = 0x7100_0000
        configuration.uidCount = uids
        configuration.takesDown = takesDown
        configuration.allowsBadKernel = allowsBadKernel
        var surroundings = Broker.Surroundings { (launch, handler) throws(SystemError) in
            guard let host = late.host else { throw SystemError("start", ECHILD) }
            if let errno = host.startError { throw SystemError("clone", errno) }
            let worker = FakeWorker(
                launch, fault: host.faultOf.map { $0(launch) } ?? host.fault, geometry: host.geometry, loop: loop,
                handler: handler)
            worker.failure = host.failure
            worker.interfere = host.interfere
            host.workers.append(worker)
            return worker
        }
        let adopt = surroundings.adoptWorker
        surroundings.adoptWorker = { (recorded, loop) throws(SystemError) in
            if let errno = late.host?.adoptError { throw SystemError("adopt", errno) }
            return try adopt(recorded, loop)
        }
        surroundings.verify = { _, _ in
            late.host?.whileVerified?()
            return late.host?.sandboxProblem
        }
        surroundings.now = { monotonicNanoseconds() + (late.host?.clockAdvance ?? 0) }
        surroundings.holding = { _, answer in
            loop.later {
                late.host?.whileAsked?()
                answer(late.host?.holding ?? .free)
            }
        }
        surroundings.nodes = Nodes(folder: folder)
        surroundings.release = release
        if !mayChown {
            surroundings.nodes.give = { (_, _) throws(SystemError) in throw SystemError("chown", EPERM) }
        }
        surroundings.kernelLog = kernelLog
        surroundings.groups = groups
        surroundings.descriptorStore = store?(loop)
        surroundings.sysfs = folder + "/sys"
        surroundings.requestsInFlight = { _ in
            late.host?.whileCounted?()
            return late.host.map(\.requestsInFlight) ?? 0
        }
        surroundings.requestsDone = { _ in late.host?.requestsDone() }
        surroundings.programNow = { _ in late.host?.installed.identity }
        surroundings.openProgram = { (_) throws(TrustedFile.Distrust) in
            guard let host = late.host, !host.isProgramMissing else { throw TrustedFile.Distrust(description: "gone") }
            return host.installed
        }
        let text = policy ?? "allow group=50 target=* max-devices=3 max-memory=1G\nallow uid=0 target=*\n"
        broker = try Broker(
            configuration: configuration, loop: loop,
            policy: AccessPolicy(
                parsing: Array(text.utf8), file: "access.policy", targets: TargetList.names, user: { UInt32($0) },
                group: { UInt32($0) }),
            walls: try Host.walls(), program: installed, workerGID: 12345,
            driver: Driver { () throws(SystemError) in kernel }, surroundings: surroundings,
            accounts: accounts,
            replaceWorker: { broker, device, change in broker.replaceAfterDeath(device, change) })
        try broker.store.prepare()
        late.host = self
    }

    deinit { Host.remove(folder) }

    static func remove(_ folder: String) {
        for name in listFolder(folder) where unlink("\(folder)/\(name)") != 0 { remove("\(folder)/\(name)") }
        rmdir(folder)
    }

    static func temporaryFolder() throws -> String {
        var template = Array("/tmp/ubd-broker-test-XXXXXX\0".utf8CString.dropLast())
        guard mkdtemp(&template) != nil else { throw SystemError("mkdtemp", errno) }
        return String(decoding: template.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }

    /// A program that differs from all others.
    static func program() throws -> WorkerProgram {
        let file = FileDescriptor(owning: try call("memfd_create") { memfd_create("program", UInt32(MFD_CLOEXEC)) })
        let status = try file.status()
        return WorkerProgram(file, status)
    }

    private static func walls() throws -> [String: Walls] {
        var walls: [String: Walls] = [:]
        let content = SandboxBundle(
            setupFilter: [6], loopFilter: [6],
            ring: RingSeal(operations: [46], registerOperations: [12], flagsAllowed: 0, flagsRequired: 1))
        for target in TargetList.all {
            walls[target.name] = try Walls(target: target, contents: DataMode.allCases.map { _ in content })
        }
        return walls
    }

    /// Lets the broker run until `condition` holds; a test that waits longer than 10 s fails.
    func run(until condition: @escaping () -> Bool) throws {
        let deadline = monotonicNanoseconds() + 10_000_000_000
        while !condition() {
            if monotonicNanoseconds() > deadline {
                Issue.record("the broker did not get there in 10 s")
                return
            }
            loop.after(milliseconds: 1) { [loop] in loop.stop() }
            try loop.run()
        }
    }

    /// Adds a device and waits for the last answer.
    func add(
        _ request: AddRequest = AddRequest(target: "null"), as peer: PeerCredentials = Host.alice,
        parking: ((Int32) -> Void)? = nil
    ) throws -> Result<(Device, [Notice]), InterfaceError> {
        var result: Result<(Device, [Notice]), InterfaceError>?
        _ = broker.add(request, peer: peer) { answer in
            switch answer {
            case .files(_, let socket):
                parking?(socket)
                close(socket)
            case .added(let device, let notices): result = .success((device, notices))
            case .failed(let error): result = .failure(error)
            }
        }
        try run { result != nil }
        return try #require(result)
    }

    /// Asks for a recovery, brings that many files as `parking` does, and waits for the last answer.
    func recover(
        _ request: RecoverRequest, as peer: PeerCredentials, files: Int, parking: ((Int32) -> Void)? = nil
    ) throws -> Result<Device, InterfaceError> {
        var result: Result<Device, InterfaceError>?
        let operation = broker.recover(request, peer: peer) { answer in
            switch answer {
            case .files(let count, let socket):
                #expect(count == files)
                (parking ?? NBDHost.park)(socket)
                close(socket)
            case .added(let device, _): result = .success(device)
            case .failed(let error): result = .failure(error)
            }
        }
        try run { result != nil }
        withExtendedLifetime(operation) {}
        return try #require(result)
    }

    func delete(_ id: UInt32, as peer: PeerCredentials = Host.alice, force: Bool = false) throws -> InterfaceError? {
        var done = false
        var result: InterfaceError?
        broker.delete(DeleteRequest(id: id, force: force), peer: peer) {
            result = $0
            done = true
        }
        try run { done }
        return result
    }

    /// The devices of all replies to List.
    func list(_ request: ListRequest, peer: PeerCredentials) throws -> ListReply {
        var replies = try broker.listing(request, peer: peer)
        return try ListReply(parameters: replies.whole(limit: .max).parameters)
    }

    func stats(_ request: StatsRequest, peer: PeerCredentials) throws -> StatsReply {
        var replies = try broker.counting(request, peer: peer)
        return try StatsReply(parameters: replies.whole(limit: .max).parameters)
    }

    /// The remains of devices; empty when there are none.
    var leftovers: [String] {
        var result: [String] = []
        if !broker.devices.isEmpty { result.append("devices \(broker.devices.keys.sorted())") }
        if broker.uids.free != broker.uids.range.count { result.append("uids \(broker.uids.free)") }
        for sub in ["state", "udev"] { result += listFolder(folder + "/" + sub).map { "\(sub)/\($0)" } }
        result += listFolder(folder).filter { $0.hasPrefix("ub") && $0 != "udev" }
        result += kernel.devices.values.filter { $0.serverFlags != 0 }.map { "kernel device \($0.deviceID)" }
        let usage = broker.usage(of: Host.alice.uid)
        if usage != AccessUsage(devices: 0, memoryBytes: 0) { result.append("\(usage)") }
        return result
    }
}
