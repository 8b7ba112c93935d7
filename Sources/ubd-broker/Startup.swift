import BrokerInterface
import CShims
import Glibc
import KernelABI
import Numbers
import Policy
import Sandbox
import SystemCalls
import Targets
import WorkerProtocol

/// From the command line to a serving broker. Any problem ends it here, with one line that explains it.
enum Startup {
    static func main(_ arguments: [String]) -> Int32 {
        do {
            var (command, configuration) = try Configuration.parse(arguments)
            switch command {
            case .help: try show(Configuration.help)
            case .version: try show("ubd-broker \(UBDVersion.text)\n")
            case .run:
                if let subject = configuration.dumps {
                    try dump(subject, configuration)
                } else if configuration.onlyChecks {
                    try check(configuration)
                } else {
                    try configuration.makeAbsolute()
                    try serve(configuration)
                }
            }
            return 0
        } catch let error as Configuration.UsageError {
            return say("\(error.message); see ubd-broker --help", 2)
        } catch let error as StartupRefusal {
            return say(error.message, error.status)
        } catch {
            return say("\(error)", 1)
        }
    }

    private static func say(_ message: String, _ status: Int32) -> Int32 {
        _ = writeStandard("ubd-broker: \(message)\n", to: STDERR_FILENO)
        return status
    }

    private static func show(_ text: String) throws(StartupRefusal) {
        let error = writeStandard(text, to: STDOUT_FILENO)
        if error != 0 { throw StartupRefusal(message: outputLost(error), status: 1) }
    }

    // MARK: Policies

    private static func accessPolicy(_ configuration: Configuration) throws -> AccessPolicy {
        let bytes: [UInt8]
        if configuration.takesDown {
            bytes = Array("deny uid=* target=*\n".utf8)
        } else {
            do { bytes = try TrustedFile.read(configuration.accessPolicy) } catch {
                throw StartupRefusal(message: "access policy \(error)", status: 2)
            }
        }
        // A name of which nobody knows whether it exists must not be refused as one that does not.
        var unknown: SystemError?
        func known(_ look: () throws(SystemError) -> UInt32?) -> UInt32? {
            do throws(SystemError) { return try look() } catch {
                unknown = unknown ?? error
                return nil
            }
        }
        do {
            let policy = try AccessPolicy(
                parsing: bytes, file: configuration.accessPolicy, targets: TargetList.names,
                user: { name in known { () throws(SystemError) in try AccountNames.user(name) } },
                group: { name in known { () throws(SystemError) in try AccountNames.group(name) } })
            if let unknown { throw unknown }
            return policy
        } catch {
            guard let unknown else { throw StartupRefusal(message: "access policy \(error)", status: 2) }
            throw StartupRefusal(
                message: "access policy \(configuration.accessPolicy): a name in it can not be looked up: \(unknown)",
                status: 1)
        }
    }

    private static func walls(_ configuration: Configuration) throws -> [String: Walls] {
        var walls: [String: Walls] = [:]
        for target in TargetList.all {
            do { walls[target.name] = try Walls(target: target, folder: configuration.policyFolder) } catch {
                throw StartupRefusal(message: "sandbox policy of target \(target.name): \(error)", status: 2)
            }
        }
        return walls
    }

    private static func ownFilter(_ configuration: Configuration) throws -> SystemCallFilter {
        do { return try BrokerFilter.load(folder: configuration.policyFolder) } catch {
            throw StartupRefusal(message: "the broker's own policy: \(error)", status: 2)
        }
    }

    private static func check(_ configuration: Configuration) throws {
        let policy = try accessPolicy(configuration)
        _ = try walls(configuration)
        _ = try ownFilter(configuration)
        let lines =
            policy.rules.map { "\($0.location): \($0.text)\n" } + policy.warnings.map { "warning: \($0)\n" }
        try show(
            lines.joined()
                + "\(policy.rules.count) rules, \(policy.warnings.count) warnings; the sandbox policies compile\n")
    }

    private static func dump(_ subject: String, _ configuration: Configuration) throws {
        let text: String?
        do { text = try PolicyDump.text(of: subject, folder: configuration.policyFolder) } catch {
            throw StartupRefusal(message: "policy \(error)", status: 2)
        }
        guard let text else {
            let known = PolicyDump.subjects.joined(separator: ", ")
            throw StartupRefusal(message: "there is no policy of '\(subject)'; there are \(known)", status: 2)
        }
        try show(text)
    }

    // MARK: Serving

    private static func serve(_ configuration: Configuration) throws {
        guard geteuid() == 0 else {
            throw StartupRefusal(message: "must run as root (uid 0), not as uid \(geteuid())", status: 1)
        }
        try CleanEnvironment.enforce(CommandLine.arguments)
        try prepareProcess()
        let passed = try PassedDescriptors.take()
        // Take-down adds no device, so it needs no access policy and no walls, and an error in them must not prevent
        // it.
        let policy = try accessPolicy(configuration)
        let walls = try configuration.takesDown ? [:] : walls(configuration)
        let filter = try ownFilter(configuration)
        // Not kept here, since an upgrade replaces the broker's.
        var program: WorkerProgram? = try workerProgram(configuration)
        let gid = try workerGroup(configuration)
        let accounts = accounts()
        try RunFolder.prepare(configuration.runFolder)
        let lock = try BrokerLock.take(configuration.runFolder + "/lock")
        let loop = try EventLoop()
        let encoding: ControlRing.Encoding = configuration.usesLegacyOpcodes ? .legacy : .ioctl
        #if UBD_TEST_FAILURES
            let driver = Driver { () throws(SystemError) in
                FailingControlDevice(try ControlRing(loop: loop, encoding: encoding), loop: loop)
            }
            var surroundings = Broker.Surroundings { (launch, handler) throws(SystemError) in
                try FailingWorker.start(launch, loop: loop, handler: handler)
            }
        #else
            let driver = Driver { () throws(SystemError) in try ControlRing(loop: loop, encoding: encoding) }
            var surroundings = Broker.Surroundings { (launch, handler) throws(SystemError) in
                try WorkerProcess(launch, loop: loop, handler: handler)
            }
        #endif
        let groups = try groups(configuration, loop)
        surroundings.groups = groups.tree
        surroundings.descriptorStore = DescriptorStore(
            loop: loop, offer: .init { name in getenv(name).map { String(cString: $0) } }, passed: passed.stored)
        surroundings.kernelLog = KernelLog.ofHost()
        if surroundings.kernelLog == nil {
            Log.notice(
                "kernel-log",
                (
                    "what",
                    "/dev/kmsg can not be read: deaths by seccomp and by lack of memory are reported without details; needs CAP_SYSLOG"
                ))
        }
        let broker = try Broker(
            configuration: configuration, loop: loop, policy: policy, walls: walls, program: program.take()!,
            workerGID: gid, driver: driver, surroundings: surroundings, accounts: accounts,
            replaceWorker: { broker, device, change in broker.replaceAfterDeath(device, change) })
        for warning in policy.warnings { Log.warning("access-policy", ("what", "\(warning)")) }
        broker.letGo(foreign: passed.foreign)
        try broker.store.prepare()
        let signals = try SignalReader([SIGTERM, SIGINT, SIGCHLD, SIGHUP])
        try watch(signals.file.raw, broker) { signals.next() }
        var server: Server?
        var failure: (any Error)?
        try broker.reconcile {
            if configuration.takesDown { return TakeDown(broker).begin { loop.stop() } }
            do {
                server = Server(
                    try RunFolder.listener(configuration.socketPath, passed: passed.listener), broker: broker)
                try server?.begin()
            } catch {
                failure = error
                return loop.stop()
            }
            Log.info(
                "ready", ("version", UBDVersion.text), ("socket", configuration.socketPath),
                ("kernel", kernelRelease()))
            if let bad = broker.badKernel {
                Log.warning(
                    "bad-kernel", ("kernel", kernelRelease()), ("what", "\(bad.fault): no device is made"),
                    ("report", bad.report), ("remedy", "\(bad.remedy); or --allow-bad-kernel"))
            }
            Watchdog(broker).begin()
            keepLog(loop)
            Notification.send("READY=1")
            Notification.keepAlive(
                loop, every: Notification.watchdogPeriod { name in getenv(name).map { String(cString: $0) } })
        }
        groups.say()
        if configuration.takesDown { Survivors.mark(broker.devices.values.compactMap { $0.worker?.pid }) }
        try confine(filter)
        try loop.run()
        if let failure { throw failure }
        Notification.send("STOPPING=1")
        Log.catchUp(all: true)
        Undertaker.leave((server?.sockets ?? []) + broker.parkingEnds + broker.undertaker.descriptors)
        withExtendedLifetime((server, broker)) {}
        _ = lock.raw
    }

    /// The users, each with all uids that /etc/subuid gives them.
    private static func accounts() -> Accounts {
        let accounts = Accounts.ofHost()
        if let problem = accounts.problem {
            Log.notice("subordinate-uids", ("file", Accounts.file), ("why", problem))
        }
        Log.count(by: accounts)
        return accounts
    }

    /// Every second from now on: logs what was suppressed or lost.
    private static func keepLog(_ loop: EventLoop) {
        loop.after(milliseconds: 1000) {
            Log.catchUp()
            keepLog(loop)
        }
    }

    /// Opens the control groups; `tree` is nil when there are none. A folder that the command line names must work.
    /// `say` logs the result. It is called when the broker is certain to start, so that a refused start logs only its
    /// reason.
    private static func groups(
        _ configuration: Configuration, _ loop: EventLoop
    ) throws -> (tree: (any DeviceGroups)?, say: () -> Void) {
        do throws(ControlGroupPlace.Problem) {
            let tree = try configuration.controlGroup.open(loop: loop)
            let missing = ControlGroupTree.wanted.filter { !tree.controllers.contains($0) }
            let (folder, controllers) = (tree.path, tree.controllers.joined(separator: ","))
            return (
                tree,
                {
                    Log.info(
                        "control-groups", ("folder", folder), ("controllers", controllers),
                        ("missing", missing.joined(separator: ",")))
                }
            )
        } catch {
            if case .folder = configuration.controlGroup {
                throw StartupRefusal(
                    message: "no control groups can be made: \(error.what); see --control-group", status: 1)
            }
            let what = "no control group for devices: \(error.what)"
            return (nil, { Log.notice("control-groups", ("what", what)) })
        }
    }

    /// The last step of the start: names, policies and libraries are not looked up any more.
    private static func confine(_ filter: SystemCallFilter) throws {
        do throws(SystemError) {
            try Capabilities.dropOthers()
            try filter.installOnAllThreads()
        } catch { throw StartupRefusal(message: "the broker can not confine itself: \(error)", status: 1) }
    }

    private static func watch(_ fd: Int32, _ broker: Broker, _ next: @escaping () -> Int32?) throws {
        _ = try broker.loop.watch(fd, .readable) { _ in
            while let signal = next() {
                switch signal {
                case SIGCHLD: broker.childChanged()
                case SIGHUP: Log.notice("reload", ("what", "restart the broker to read its policies again"))
                default:
                    Log.info("stopping", ("signal", signalName(signal)))
                    broker.loop.stop()
                }
            }
        }
    }

    /// Resets what the process inherited from its starter.
    private static func prepareProcess() throws(SystemError) {
        resetInheritedSignals()
        // A write to its terminal from the background would stop it (termios(3), TOSTOP), and all users would wait.
        signal(SIGTTOU, SIG_IGN)
        closeInherited(from: STDERR_FILENO + 1 + RunFolder.passedSockets)
        umask(0o077)
        // Enough for the descriptors of many devices and clients.
        resetInheritedLimits(openFiles: 65536)
        // The starter's folder would stay busy, and may be deleted already.
        try call("chdir /") { chdir("/") }
        processControl(PR_SET_DUMPABLE, 0)
    }

    private static func workerProgram(_ configuration: Configuration) throws -> WorkerProgram {
        do { return try WorkerProgram(path: configuration.workerProgram) } catch {
            throw StartupRefusal(message: "worker program \(error)", status: 1)
        }
    }

    private static func workerGroup(_ configuration: Configuration) throws -> UInt32 {
        let name = configuration.workerGroup
        do throws(SystemError) {
            if let group = try AccountNames.group(name) { return group }
        } catch {
            throw StartupRefusal(message: "the workers' group '\(name)' can not be looked up: \(error)", status: 1)
        }
        throw StartupRefusal(
            message: "there is no group '\(name)' for the workers; groupadd --system \(name)", status: 1)
    }
}
