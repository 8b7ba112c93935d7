import Targets

extension BrokerAPI {
    /// `io.ubd.Broker` in Varlink's interface definition language (UAPI.20). Each comment is on lines of its own,
    /// before its subject, where every parser of the language accepts it. A test compares the text with the Swift types.
    public static let description = """
        # ubd: block devices for unprivileged users, served from userspace (Linux ublk).
        # The access policy decides who may do what. The caller is the user who connected to the socket.
        interface io.ubd.Broker

        # A device. Sizes are in bytes.
        type Device (
          # N of /dev/ublkbN.
          id: int,
          # Distinguishes the device from a later one with the same id.
          generation: int,
          # Uid of the owner.
          owner: int,
          # Name of the target: \(TargetList.names.joined(separator: ", ")).
          target: string,
          # adding, starting, live, recovering, deleting, unmanaged, stuck or failed.
          state: string,
          # Why it is not live; null when it is live.
          reason: ?string,
          # The block device, for example /dev/ublkb0.
          node: string,
          # The link, for example /dev/ubdb0; null when another file has that name.
          link: ?string,
          sizeBytes: int,
          blockSize: int,
          physicalBlockSize: int,
          readOnly: bool,
          # Hardware queues.
          queues: int,
          # Tags per queue.
          depth: int,
          # Maximum bytes of one request.
          maxIOBytes: int,
          # How data and requests move: copy, zero-copy, batch or batch-zero-copy.
          mode: string,
          # The backing file is used through the page cache.
          buffered: bool,
          # What happens when the worker dies: reissue, queue, fail or none.
          recovery: string,
          # Seconds without progress after which a worker with requests is replaced; null: the broker's default.
          ioTimeout: ?int,
          # The access policy allows root's programs (udev's probes, LVM, udisks) to read its content; null: no.
          trustedContent: ?bool,
          # The number of its workers that have died, and how the last one did.
          deaths: int,
          lastDeath: ?string,
          # The beginning of its state, in seconds since 1970.
          since: int,
          # The client's name for its file: a label that is never opened.
          file: ?string,
          # The device's offset in its file in bytes; null: 0.
          offset: ?int,
          workerPid: ?int,
          workerUid: ?int,
          # The version that the worker reports.
          workerVersion: ?string,
          # Whether Upgrade would replace the worker, since its program is not that of new workers; null: unknown.
          workerOutdated: ?bool,
          # The CPUs on which its queues' threads run, for example 0-1,3; null: the kernel's choice for each queue.
          cpus: ?string,
          # The CPUs to which the access policy confines the worker; null: all.
          allowedCPUs: ?string,
          # The worker's control group, as in /proc/PID/cgroup; null: it has none of its own.
          controlGroup: ?string,
          # The limits of that group and of its owner's group.
          groupLimits: ?GroupLimits,
          # The time of Add, in seconds since 1970.
          created: int
        )

        # Limits of control groups. Null: no limit. userMemory and the limits of cpu and io apply to all devices of one
        # user together, the others to one device.
        type GroupLimits (
          # Bytes: buffers, program, page cache, and the kernel's memory for the device.
          deviceMemory: ?int,
          deviceTasks: ?int,
          userMemory: ?int,
          # The processor weight relative to other users; 100 is the default.
          cpuWeight: ?int,
          # Percent of one processor.
          cpuQuota: ?int,
          # Bytes per second on each disk, for reads and for writes separately.
          ioBandwidth: ?int,
          ioOperations: ?int
        )

        # Information for the caller about a call that succeeded.
        type Notice (
          # For programs, for example read-only.
          code: string,
          # For people.
          message: string
        )

        # The caller's limits in the access policy.
        type Limits (
          maxDevices: int,
          maxQueues: int,
          maxDepth: int,
          # Bytes of I/O buffers of all devices: queues times depth times maxIOBytes of each.
          maxMemoryBytes: int,
          # Null: no limit.
          maxSizeBytes: ?int,
          targets: []string,
          readOnlyOnly: bool,
          zeroCopy: bool,
          # Adds, upgrades and recoveries: this many at once, and this many a minute. Null: no limit.
          maxStarts: ?int,
          # Seconds without starts after a worker of the caller broke its sandbox, for the first time within a day.
          # Null: none.
          penalty: ?int,
          # Device numbers that a request may name, for example 0-15,20. Null: any that is not reserved.
          ids: ?string,
          # The CPUs on which the caller's workers run, for example 0-1,3. Null: all.
          cpus: ?string,
          # The limits of the control groups of the caller's devices. Null: none.
          groups: ?GroupLimits
        )

        # The committed requests of one operation.
        type OperationCount (
          requests: int,
          # Bytes of the successful requests.
          bytes: int,
          # The number of failed requests.
          errors: int
        )

        # The counters of a queue, or of all queues of a device, as the worker reports them.
        type Counts (
          read: OperationCount,
          write: OperationCount,
          flush: OperationCount,
          discard: OperationCount,
          writeZeroes: OperationCount,
          # Requests that the worker holds.
          inFlight: int,
          wakeUps: int,
          # Wake-ups by the number of requests that they brought: element n counts those with 2^n to 2^(n+1)-1. Wake-ups
          # without requests are not counted. Missing elements at the end are 0.
          batchSizes: []int,
          # A sample of the requests, by the time from the wake-up that brought a request to the end of the wake-up that
          # committed it: element n counts those from latencyBounds[n-1] up to latencyBounds[n]; the last element is
          # unbounded. Missing elements at the end are 0. Empty on hosts whose processors' counters are not steady:
          # there no times are measured.
          latency: []int
        )

        # The counters of a device. A replacement worker continues them.
        type DeviceStats (
          id: int,
          # Distinguishes the device from a later one with the same id.
          generation: int,
          # When the counters started at zero, in seconds since 1970.
          since: ?int,
          # All queues together. Null when the broker cannot read them, for example during Add.
          total: ?Counts,
          # Each queue separately, if requested.
          queues: ?[]Counts
        )

        # Add a device. Must be called with more.
        # For a target that needs files there are two replies. The first one has files and parking, and carries a file
        # descriptor at the index given by parking: a SOCK_SEQPACKET socket. The client sends its files on it in one
        # message of one byte with at most that many descriptors, and closes the socket. For target loop these are the
        # file opened without O_DIRECT and, if O_DIRECT is wanted and works, the same file opened with it, in this
        # order. The last reply has device and notices. Closing the connection before the last reply undoes the call.
        # Over a transport without file descriptors only targets without files can be added.
        method Add(
          # Name of the target.
          target: string,
          # Requested id; null: the broker chooses.
          id: ?int,
          # Default 1.
          queues: ?int,
          # Default 128.
          depth: ?int,
          # Default 524288.
          maxIOBytes: ?int,
          # Default false.
          readOnly: ?bool,
          # How data and requests move: copy, zero-copy, batch, batch-zero-copy, or auto for the best one that the
          # kernel has and the access policy grants. Default auto.
          mode: ?string,
          # What happens when the worker dies: reissue, queue, fail or none. Default reissue.
          recovery: ?string,
          # Seconds without progress, 2 to 3600, after which a worker with requests is replaced. Default: the broker's.
          ioTimeout: ?int,
          # The CPUs on which the queues' threads run, for example 0-1,3. Default: for each queue the CPUs from which
          # the kernel sends its requests.
          cpus: ?string,
          # The client's name for its file: a label of at most 1024 bytes without control characters.
          fileName: ?string,
          # The options of the target. Bytes and milliseconds are decimal numbers.
        \(optionComments)
          options: ?[string]string
        ) -> (
          files: ?int,
          parking: ?int,
          device: ?Device,
          notices: ?[]Notice
        )

        # Delete a device. Without force a device in use is left alone.
        method Delete(
          id: int,
          # Delete only the device of this generation.
          generation: ?int,
          # Kill the worker first; requests in flight fail.
          force: ?bool
        ) -> ()

        # Replace the worker of a live device by one with the current program, without an error for the device's users.
        # upgraded is false when the worker has that program already. If the new program is not fit, the call fails and
        # the old worker serves on.
        method Upgrade(
          id: int,
          # Only the device of this generation.
          generation: ?int
        ) -> (upgraded: bool, device: Device)

        # Reopen the file of a device that waits for it (state recovering), because broker and worker died together.
        # Must be called with more; the replies are those of Add. It must be the same file. After a wrong file, or when
        # the connection is closed before the files arrive, the device keeps waiting.
        method Recover(
          id: int,
          # Only the device of this generation.
          generation: ?int
        ) -> (
          files: ?int,
          parking: ?int,
          device: ?Device,
          notices: ?[]Notice
        )

        # The caller's devices; root gets all devices. With more there is a reply for each device, in the order of their
        # numbers. The client reads them at its own pace; a device that is gone when its turn comes is omitted.
        # Without more there is one reply if it has at most 256 KiB; otherwise the error is ExpectedMore.
        method List(
          # Only this device.
          id: ?int
        ) -> (devices: []Device)

        # The counters of the caller's devices; root gets all devices. With and without more as for List.
        method Stats(
          # Only this device.
          id: ?int,
          # Also each queue separately; only together with id. Default false.
          queues: ?bool
        ) -> (
          # In nanoseconds.
          latencyBounds: []int,
          devices: []DeviceStats
        )

        # The broker, the host, and the caller's rights.
        method Info() -> (
          # Version of the broker.
          version: string,
          # Release of the kernel.
          kernel: string,
          # The driver's answer to GET_FEATURES; 0 without a driver.
          featureBits: int,
          # Names of these features.
          features: []string,
          # Names of the features that this broker does not use.
          ignoredFeatures: []string,
          # Targets that this broker serves.
          targets: []string,
          # Devices of all users.
          devices: int,
          devicesOfCaller: int,
          # Free uids for workers.
          workerUidsFree: int,
          # Group of the workers.
          workerGroup: string,
          # The path of the broker's socket.
          socket: string,
          # The parent of the devices' control groups, as in /proc/PID/cgroup. Null: there are none.
          controlGroup: ?string,
          # Their controllers, out of cpu, io, memory and pids.
          controllers: ?[]string,
          # The broker's start, in seconds since 1970.
          started: int,
          # Whether the caller may add devices.
          permitted: bool,
          # The access rule that decided for the caller.
          rule: ?string,
          # Null when not permitted.
          limits: ?Limits
        )

        # Every error has message (what is wrong, with which value) and remedy (what to do next).
        # The access policy refuses.
        error NotPermitted(message: string, remedy: string, rule: ?string)

        # A limit of the access policy or of the host is reached. again: seconds until the same call may succeed, when
        # only time is needed.
        error QuotaReached(message: string, remedy: string, limit: string, value: int, again: ?int)

        # A temporary limit of the broker itself is reached: the same call succeeds later. The error may come before the
        # call is read; then the connection is closed.
        error LimitReached(message: string, remedy: string, limit: string, value: int)

        # A parameter or option has an invalid value.
        error InvalidOption(message: string, remedy: string, option: string, value: string)

        # The file at this index cannot back a device.
        error BadFile(message: string, remedy: string, index: int)

        # Another device has this id.
        error IdInUse(message: string, remedy: string, id: int)

        # The device does not exist or is not the caller's.
        error NoSuchDevice(message: string, remedy: string, id: int)

        # The device is in use.
        error Busy(message: string, remedy: string, id: int, holder: string)

        # The kernel lacks a feature.
        error KernelUnsupported(message: string, remedy: string, feature: string)

        # A step failed unexpectedly.
        error Failed(message: string, remedy: string, step: string, errno: ?int)

        """

    /// The options of each target, one comment line each.
    private static var optionComments: String {
        TargetList.all.flatMap { target in
            target.options.map { option in
                "  # \(target.name), \(option.name): \(option.help): \(option.range). "
                    + "Default: \(option.defaultText)."
            }
        }.joined(separator: "\n")
    }

    /// `org.varlink.service`, as UAPI.20 prints it.
    public static let serviceDescription = """
        # The Varlink Service Interface should be provided by every varlink service.
        # It describes the service and the interfaces it implements.
        interface org.varlink.service

        # Get a list of all the interfaces a service provides and information
        # about the implementation.
        method GetInfo() -> (
          vendor: string,
          product: string,
          version: string,
          url: string,
          interfaces: []string
        )

        # Get the description of an interface that is implemented by this service.
        method GetInterfaceDescription(interface: string) -> (description: string)

        # The requested interface was not found.
        error InterfaceNotFound (interface: string)

        # The requested method was not found
        error MethodNotFound (method: string)

        # The interface defines the requested method, but the service does not
        # implement it.
        error MethodNotImplemented (method: string)

        # One of the passed parameters is invalid.
        error InvalidParameter (parameter: string)

        # Client is denied access
        error PermissionDenied ()

        # Method is expected to be called with 'more' set to true, but wasn't
        error ExpectedMore ()

        # Method is expected to be called with 'upgrade' set to true, but wasn't
        error ExpectedUpgrade ()

        """
}
