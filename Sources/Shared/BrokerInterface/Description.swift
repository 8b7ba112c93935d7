import Targets

extension BrokerAPI {
    /// `io.ubd.Broker` in Varlink's interface definition language (UAPI.20). Comments stand on lines of their own, before
    /// what they explain, which every parser of the language accepts. A test holds it against the Swift types.
    public static let description = """
        # ubd: block devices that are served from userspace (Linux ublk), for unprivileged users.
        # Who may do what is decided by the access policy; the caller is who connected to the socket.
        interface io.ubd.Broker

        # One device. Sizes are bytes.
        type Device (
          # N of /dev/ublkbN.
          id: int,
          # Tells the device from a later one with the same id.
          generation: int,
          # Uid of the owner.
          owner: int,
          # Name of the target: \(TargetList.names.joined(separator: ", ")).
          target: string,
          # adding, starting, live, recovering, deleting, unmanaged, stuck or failed.
          state: string,
          # Why it is not live, when it is not.
          reason: ?string,
          # The block device, as in /dev/ublkb0.
          node: string,
          # The link, as in /dev/ubdb0; null when something else has that name.
          link: ?string,
          sizeBytes: int,
          blockSize: int,
          physicalBlockSize: int,
          readOnly: bool,
          # Hardware queues.
          queues: int,
          # Requests at once in each queue.
          depth: int,
          # Most bytes of one request.
          maxIOBytes: int,
          # How data and requests move: copy, zero-copy, batch or batch-zero-copy.
          mode: string,
          # The backing file goes through the page cache.
          buffered: bool,
          # What happens when the worker dies: reissue, queue, fail or none.
          recovery: string,
          # Seconds after which a worker that has work and does nothing is replaced; null: the broker's default.
          ioTimeout: ?int,
          # The access policy lets root's own programs look at its content (udev's probes, LVM, udisks); null: no.
          trustedContent: ?bool,
          # How many workers of this device have died, and how the last one did.
          deaths: int,
          lastDeath: ?string,
          # In its state since, in seconds since 1970.
          since: int,
          # What the client calls its file: a label that is never opened.
          file: ?string,
          # Bytes into its file where the device begins; null: at the beginning.
          offset: ?int,
          workerPid: ?int,
          workerUid: ?int,
          # The version that the worker says it is.
          workerVersion: ?string,
          # The worker is of another program than new ones are: Upgrade would replace it.
          workerOutdated: ?bool,
          # The CPUs where the threads of its queues run, as in 0-1,3; null when the kernel's choice for each queue is taken.
          cpus: ?string,
          # The CPUs that the access policy gave its worker, which nothing of it leaves; null: all.
          allowedCPUs: ?string,
          # The control group of its worker, as in /proc/PID/cgroup; null: it has none of its own.
          controlGroup: ?string,
          # What that group and its owner's keep.
          groupLimits: ?GroupLimits,
          # Seconds since 1970.
          created: int
        )

        # What control groups keep. Null: no limit. The members with cpu and io, and userMemory, are for all devices of one
        # user together.
        type GroupLimits (
          # Bytes of one device: buffers, program, page cache, and what the kernel needs for it.
          deviceMemory: ?int,
          deviceTasks: ?int,
          userMemory: ?int,
          # Share of the processors beside other users; 100 is the usual one.
          cpuWeight: ?int,
          # Percent of one processor.
          cpuQuota: ?int,
          # Bytes a second that are read, and as many that are written, of each disk.
          ioBandwidth: ?int,
          ioOperations: ?int
        )

        # What the caller should know though the call succeeded.
        type Notice (
          # For programs, as in read-only.
          code: string,
          # For people.
          message: string
        )

        # What the access policy lets the caller have.
        type Limits (
          maxDevices: int,
          maxQueues: int,
          maxDepth: int,
          # Bytes of I/O buffers of all devices together: queues times depth times maxIOBytes.
          maxMemoryBytes: int,
          # Null: no limit.
          maxSizeBytes: ?int,
          targets: []string,
          readOnlyOnly: bool,
          zeroCopy: bool,
          # The caller's adds, upgrades and recoveries: so many at once, and then so many a minute. Null: no limit.
          maxStarts: ?int,
          # Seconds without a new worker after one of the caller's broke its sandbox, for the first time within a day. Null: none.
          penalty: ?int,
          # Device numbers that may be asked for, as in 0-15,20. Null: any that is not kept for others.
          ids: ?string,
          # CPUs on which the caller's workers run, as in 0-1,3. Null: all.
          cpus: ?string,
          # What the control groups of the caller's devices keep. Null: nothing.
          groups: ?GroupLimits
        )

        # The requests of one operation that went back to the kernel.
        type OperationCount (
          requests: int,
          # Bytes of those that succeeded.
          bytes: int,
          # How many of the requests failed.
          errors: int
        )

        # What one queue has counted, or all queues of a device together: the claims of its worker.
        type Counts (
          read: OperationCount,
          write: OperationCount,
          flush: OperationCount,
          discard: OperationCount,
          writeZeroes: OperationCount,
          # Requests that the worker holds.
          inFlight: int,
          wakeUps: int,
          # Wake-ups by how many requests they brought: element n counts those of 2^n to 2^(n+1)-1. Those that brought
          # none are not in it. Elements that are missing at the end are 0.
          batchSizes: []int,
          # A sample of the requests, by the time from the wake-up that brought a request to the end of the one that gave
          # it back: element n counts those below latencyBounds[n] and not below the bound before; the last element has
          # no bound. Elements that are missing at the end are 0. Empty on hosts whose processors' own clocks do not run
          # in step: there no time is taken.
          latency: []int
        )

        # The counters of one device. They count on when a worker is replaced.
        type DeviceStats (
          id: int,
          # Tells the device from a later one with the same id.
          generation: int,
          # When the counters began at zero, in seconds since 1970.
          since: ?int,
          # All queues together. Null when there is no page to read, as while a device is being added.
          total: ?Counts,
          # Each queue by itself, when that was asked for.
          queues: ?[]Counts
        )

        # Add a device. To be called with more.
        # A target that needs files is answered twice. The first reply has files and parking and carries one file
        # descriptor, at the index that parking says: a SOCK_SEQPACKET socket. The client sends its files there as one
        # message of one byte with at most that many descriptors, and closes the socket. For target loop these are the
        # file opened without O_DIRECT and, when O_DIRECT is wanted and works, the same file opened with it, in this
        # order. The last reply has device and notices. Closing the connection before it undoes the call.
        # Over a transport without file descriptors only targets without files can be added.
        method Add(
          # Name of the target.
          target: string,
          # Wanted id; null lets the broker choose.
          id: ?int,
          # Default 1.
          queues: ?int,
          # Default 128.
          depth: ?int,
          # Default 524288.
          maxIOBytes: ?int,
          # Default false.
          readOnly: ?bool,
          # How data and requests are to move: copy, zero-copy, batch, batch-zero-copy, or auto for the best of them that
          # the kernel has and the access policy grants. Default auto.
          mode: ?string,
          # What happens when the worker dies: reissue, queue, fail or none. Default reissue.
          recovery: ?string,
          # Seconds, 2 to 3600: a worker that has work and does nothing for so long is replaced. Default: the broker's.
          ioTimeout: ?int,
          # The CPUs where the threads of the queues are to run, as in 0-1,3. Default: for each queue those that the kernel
          # gives it requests from.
          cpus: ?string,
          # What the client calls its file: a label, at most 1024 bytes without control characters.
          fileName: ?string,
          # The options of the target; bytes and milliseconds are decimal numbers.
        \(optionComments)
          options: ?[string]string
        ) -> (
          files: ?int,
          parking: ?int,
          device: ?Device,
          notices: ?[]Notice
        )

        # Delete a device. Without force a device that is in use is left alone.
        method Delete(
          id: int,
          # Delete only the device of this generation.
          generation: ?int,
          # Kill the worker first; I/O under way fails.
          force: ?bool
        ) -> ()

        # Replace the worker of a live device by one of the program that the broker would start now, without an error for
        # those who use the device. Not upgraded: its worker is of that program already. Fails when the new program is not
        # fit; then the device is served on by the old one.
        method Upgrade(
          id: int,
          # Only the device of this generation.
          generation: ?int
        ) -> (upgraded: bool, device: Device)

        # Bring the file of a device again that waits for it (state recovering), because broker and worker died together.
        # To be called with more, and answered as Add is. Only the same file is taken. With a wrong one, or when the
        # connection is closed before the files came, the device waits on.
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

        # The caller's devices; root sees everyone's. Called with more, it is answered by one reply for each device, in the
        # order of their numbers; the client reads them at its own pace, and what is gone when its turn comes is left out.
        # Without more all come in one reply when that has at most 256 KiB; otherwise the error is ExpectedMore.
        method List(
          # Only this device.
          id: ?int
        ) -> (devices: []Device)

        # The counters of the caller's devices; root sees everyone's. With more and without it as List.
        method Stats(
          # Only this device.
          id: ?int,
          # Each queue by itself too; only together with id. Default false.
          queues: ?bool
        ) -> (
          # Nanoseconds.
          latencyBounds: []int,
          devices: []DeviceStats
        )

        # The broker, the host, and what the caller may do.
        method Info() -> (
          # Version of the broker.
          version: string,
          # Release of the kernel.
          kernel: string,
          # What the driver said to GET_FEATURES; 0 without a driver.
          featureBits: int,
          # Names of these features.
          features: []string,
          # Those that this broker does not use.
          ignoredFeatures: []string,
          # Targets that this broker serves.
          targets: []string,
          # Devices of all users.
          devices: int,
          devicesOfCaller: int,
          # Uids for workers that are free.
          workerUidsFree: int,
          # Group of the workers.
          workerGroup: string,
          # Where the broker listens.
          socket: string,
          # Where the control groups of devices are, as in /proc/PID/cgroup. Null: there are none.
          controlGroup: ?string,
          # Their controllers: of cpu, io, memory, pids.
          controllers: ?[]string,
          # When the broker was started, in seconds since 1970.
          started: int,
          # The caller may add devices.
          permitted: bool,
          # The access rule that decided about the caller.
          rule: ?string,
          # Null when not permitted.
          limits: ?Limits
        )

        # Every error has message (what was wrong, with which value) and remedy (what to do next).
        # The access policy says no.
        error NotPermitted(message: string, remedy: string, rule: ?string)

        # A limit of the access policy or of the host is reached. Again: seconds after which the same call may succeed, when
        # that is a matter of time alone.
        error QuotaReached(message: string, remedy: string, limit: string, value: int, again: ?int)

        # A limit of the broker itself is reached, which passes: the same call succeeds later. It may come before the call
        # was read, and then the connection is closed.
        error LimitReached(message: string, remedy: string, limit: string, value: int)

        # A parameter or an option has a value that can not be.
        error InvalidOption(message: string, remedy: string, option: string, value: string)

        # The file at this index can not back a device.
        error BadFile(message: string, remedy: string, index: int)

        # Something else has this id.
        error IdInUse(message: string, remedy: string, id: int)

        # There is no such device, or it is not the caller's.
        error NoSuchDevice(message: string, remedy: string, id: int)

        # The device is in use.
        error Busy(message: string, remedy: string, id: int, holder: string)

        # The kernel lacks a feature.
        error KernelUnsupported(message: string, remedy: string, feature: string)

        # A step failed that should not have.
        error Failed(message: string, remedy: string, step: string, errno: ?int)

        """

    /// The options of each target, a comment line each.
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
